package layout

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/countinghouse/countinghouse/"

// allowed lists, for each of our packages, which of ours its code (not its
// tests) may import. A name that ends in "/" stands for all below it.
var allowed = map[string][]string{
	"version":                 {},
	"internal/layout":         {},
	"internal/docs":           {},
	"internal/apiserver":      {"internal/apiserver/binaries"},
	"internal/apiserver/":     {"internal/apiserver/binaries"},
	"record":                  {},
	"identity":                {},
	"identity/identitytest":   {"identity", "controllers/certificates"},
	"storagenode/storagepb":   {},
	"storagenode/refusal":     {"storagenode/storagepb"},
	"storagenode/codec":       {"record", "storagenode/storagepb"},
	"storagenode/directio":    {},
	"storagenode/wal":         {"storagenode/directio"},
	"storagenode/stablestore": {},
	"storagenode/sstable":     {"record", "storagenode/directio"},
	"storagenode/store":       {"record", "storagenode/refusal", "storagenode/storagepb", "storagenode/sstable"},
	"storagenode/replica": {
		"record", "storagenode/codec", "storagenode/refusal", "storagenode/storagepb", "storagenode/wal",
		"storagenode/stablestore", "storagenode/store",
	},
	"storagenode": {
		"identity", "record", "storagenode/codec", "storagenode/refusal", "storagenode/storagepb", "storagenode/replica", "storagenode/store", "version",
	},
	"storagenode/node":   {"identity", "record", "storagenode", "storagenode/refusal", "storagenode/replica", "storagenode/store", "storagenode/wal", "storagenode/storagepb", "version"},
	"storagenode/client": {"identity", "record", "storagenode/codec", "storagenode/refusal", "storagenode/storagepb"},
	// The address of a member is the resource package's to say.
	"storagenode/client/kubeshards": {"api/v1", "controllers/resource", "storagenode/client"},
	"storagenode/fire":              {},
	"storagenode/diskfault":         {},

	"exchange/exchangepb": {},
	"exchange/order":      {"record"},
	"exchange/matching":   {"record", "exchange/order"},
	"exchange/account":    {"record", "exchange/order"},
	"exchange/risk":       {"record", "exchange/order", "exchange/account"},
	"exchange/outbox":     {"record"},
	"exchange/gateway":    {"record", "exchange/order"},
	"exchange/core": {
		"record", "exchange/order", "exchange/account", "exchange/risk", "exchange/matching", "exchange/gateway",
	},
	"exchange/rebuild": {
		"record", "exchange/order", "exchange/account", "exchange/risk", "exchange/matching", "exchange/gateway", "exchange/core",
	},
	"exchange/subscriber": {
		"record", "exchange/outbox", "storagenode/client", "storagenode/refusal", "storagenode/storagepb",
	},
	"exchange":        {"record", "exchange/", "storagenode/client", "storagenode/refusal", "storagenode/storagepb", "version"},
	"exchange/launch": {"exchange", "identity"},
	"exchange/server": {"identity", "record", "exchange", "exchange/", "version"},

	"api/v1":                   {},
	"controllers":              {"api/v1", "controllers/certificates", "controllers/resource", "identity", "storagenode/client", "storagenode/storagepb"},
	"controllers/certificates": {"identity"},
	"controllers/resource":     {"api/v1"},

	"charts": {},

	"orderflow":             {"record"},
	"orderflow/":            {"record", "orderflow"},
	"orderflow/player":      {"record", "orderflow", "orderflow/synthetic", "exchange/order", "exchange/gateway", "exchange/core"},
	"localcluster/netfault": {},
	"localcluster":          {"storagenode/client", "storagenode/node"},
	"cmd/storagenode":       {"storagenode/node", "version"},
	"cmd/exchange":          {"identity", "record", "exchange", "exchange/", "storagenode/client", "storagenode/client/kubeshards", "version"},
	"cmd/operator":          {"api/v1", "controllers", "controllers/resource", "version"},
	"cmd/countinghouse":     {"cmd/countinghouse/", "identity", "record", "exchange", "exchange/", "orderflow", "orderflow/", "localcluster", "storagenode/", "version"},
	"cmd/kubectl-countinghouse": {
		"cmd/countinghouse/output", "cmd/countinghouse/replicas", "api/v1", "controllers", "controllers/resource",
		"identity", "storagenode/client", "storagenode/storagepb", "version",
	},
	"cmd/countinghouse/": {"cmd/countinghouse/", "record", "exchange", "exchange/", "orderflow", "orderflow/", "localcluster", "localcluster/", "storagenode/", "version"},
}

func TestImportsRunDownward(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		rule, ok := ruleFor(name)
		if !ok {
			t.Errorf("package %s stands in no row of the table: say what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			ours, is := strings.CutPrefix(imp, module)
			if is && !matches(rule, ours) {
				t.Errorf("%s must not import %s", name, ours)
			}
		}
	}
}

// kubernetes lists the packages that may import those of Kubernetes. A name that
// ends in "/" stands for all below it.
var kubernetes = []string{"api/v1", "controllers", "controllers/", "internal/apiserver", "storagenode/client/kubeshards", "cmd/operator", "cmd/kubectl-countinghouse"}

// isKubernetes reports whether an import is one of Kubernetes; sigs.k8s.io/yaml has
// nothing to do with it.
func isKubernetes(imp string) bool {
	return strings.HasPrefix(imp, "k8s.io/") || strings.HasPrefix(imp, "sigs.k8s.io/") && imp != "sigs.k8s.io/yaml"
}

func TestKubernetesStaysWhereItBelongs(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if i := slices.IndexFunc(p.Imports, isKubernetes); i >= 0 && !matches(kubernetes, name) {
			t.Errorf("%s must not import %s", name, p.Imports[i])
		}
	}
}

type listed struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var ps []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if len(ps) < 5 {
		t.Fatalf("go list found %d packages only", len(ps))
	}
	return ps
}

// ruleFor returns the row of the package itself, or that of the nearest folder.
func ruleFor(name string) ([]string, bool) {
	if rule, ok := allowed[name]; ok {
		return rule, true
	}
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name[:i], '/') {
		if rule, ok := allowed[name[:i+1]]; ok {
			return rule, true
		}
	}
	return nil, false
}

func matches(rule []string, imp string) bool {
	return slices.ContainsFunc(rule, func(r string) bool {
		return imp == r || strings.HasSuffix(r, "/") && strings.HasPrefix(imp, r)
	})
}
