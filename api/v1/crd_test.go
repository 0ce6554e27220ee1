package v1

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	extensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

const crdFile = "../../config/crd/countinghouse.io_instrumentshards.yaml"

// server judges objects as an API server does that has the generated CRD.
type server struct {
	structural *schema.Structural
	openAPI    validation.SchemaValidator
	rules      *cel.Validator
}

func readCRD(t *testing.T) *apiextensions.CustomResourceDefinition {
	t.Helper()
	text, err := os.ReadFile(crdFile)
	if err != nil {
		t.Fatal(err)
	}
	var external extensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		t.Fatal(err)
	}
	extensionsv1.SetDefaults_CustomResourceDefinition(&external)
	extensionsv1.SetDefaults_CustomResourceDefinitionSpec(&external.Spec)
	crd := new(apiextensions.CustomResourceDefinition)
	if err := extensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&external, crd, nil); err != nil {
		t.Fatal(err)
	}
	return crd
}

func newServer(t *testing.T) *server {
	t.Helper()
	crd := readCRD(t)
	props := crd.Spec.Validation
	if props == nil {
		props = crd.Spec.Versions[0].Schema
	}
	structural, err := schema.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	openAPI, _, err := validation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	return &server{structural, openAPI, cel.NewValidator(structural, true, celconfig.PerCallLimit)}
}

// admit returns the object with its defaults, and why it is refused.
func (s *server) admit(obj, old map[string]any) (map[string]any, error) {
	obj = runtime.DeepCopyJSON(obj)
	defaulting.Default(obj, s.structural)
	errs := validation.ValidateCustomResource(nil, obj, s.openAPI)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, s.structural, obj)...)
	var before any
	if old != nil {
		before = old
	}
	more, _ := s.rules.Validate(context.Background(), nil, s.structural, obj, before, celconfig.RuntimeCELCostBudget)
	return obj, append(errs, more...).ToAggregate()
}

// parse reads a spec over a shard that is right.
func parse(t *testing.T, spec string) map[string]any {
	t.Helper()
	obj := map[string]any{}
	text := "apiVersion: countinghouse.io/v1\nkind: InstrumentShard\nmetadata: {name: futures, namespace: default}\nspec:\n  instruments: [IF2501]\n"
	if err := yaml.Unmarshal([]byte(text), &obj); err != nil {
		t.Fatal(err)
	}
	patch := map[string]any{}
	if err := yaml.Unmarshal([]byte(spec), &patch); err != nil {
		t.Fatal(err)
	}
	merge(obj, patch)
	return reencode(t, obj)
}

// reencode returns an object with numbers as a JSON decoder of the API server gives
// them.
func reencode(t *testing.T, obj map[string]any) map[string]any {
	t.Helper()
	var out map[string]any
	b, err := json.Marshal(obj)
	if err == nil {
		err = utiljson.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func merge(into, patch map[string]any) {
	for k, v := range patch {
		below, both := into[k].(map[string]any)
		if p, ok := v.(map[string]any); ok && both {
			merge(below, p)
			continue
		}
		if v == nil {
			delete(into, k)
			continue
		}
		into[k] = v
	}
}

// The CRD itself is one that an API server takes, its rules within its budget.
func TestCRDIsTaken(t *testing.T) {
	crd := readCRD(t)
	crd.Status.StoredVersions = []string{"v1"}
	if errs := crdvalidation.ValidateCustomResourceDefinition(t.Context(), crd); len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	if s := crd.Spec; s.Names.ShortNames[0] != "ishard" || s.Scope != apiextensions.NamespaceScoped {
		t.Errorf("%+v", s.Names)
	}
}

func TestDefaults(t *testing.T) {
	obj, err := newServer(t).admit(parse(t, ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	expectDefaults(t, obj)
}

// expectDefaults checks what an API server filled in.
func expectDefaults(t *testing.T, obj map[string]any) {
	t.Helper()
	var shard InstrumentShard
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj, &shard); err != nil {
		t.Fatal(err)
	}
	s := &shard.Spec
	got := fmt.Sprintln(s.Cluster, s.Replicas, s.ImagePullPolicy, s.Storage.Size.String(), s.Storage.Retention, s.Limits, s.Timing.HeartbeatTimeout.Duration, s.Resources.Requests.Memory(), s.TLS)
	const want = "countinghouse 3 IfNotPresent 10Gi {Delete Retain} {67108864 67108864 67108864 67108864 64 256 268435456 104857600} 1s 512Mi {Managed   {720h0m0s} {8760h0m0s}}\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// ruleCase is an object that an API server takes or refuses.
type ruleCase struct {
	name, old, spec string   // over a shard that is right; old is what it was before
	update          bool     // old was there, even if it is empty
	refused         []string // words of the error; none for what is taken
}

// updates reports whether spec comes after old.
func (c *ruleCase) updates() bool { return c.update || c.old != "" }

// judge compares what an API server said with what it should.
func (c *ruleCase) judge(t *testing.T, err error) {
	t.Helper()
	switch {
	case len(c.refused) == 0 && err != nil:
		t.Errorf("refused: %v", err)
	case len(c.refused) > 0 && err == nil:
		t.Error("taken")
	}
	for _, word := range c.refused {
		if err != nil && !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not mention %q", err, word)
		}
	}
}

// ruleCases has every rule of the CRD: what it is for, with words of a message that
// names the field, and what is next to it and is let through.
func ruleCases() []ruleCase {
	long := strings.Repeat("a", 41)
	many := make([]string, 10_001)
	for i := range many {
		many[i] = fmt.Sprint("I", i)
	}
	return []ruleCase{
		{name: "as it is"},
		{name: "name too long", spec: "metadata: {name: " + long + "}", refused: []string{"metadata.name", "40"}},
		{name: "name of 40", spec: "metadata: {name: " + long[1:] + "}"},
		{name: "name begins with a digit", spec: "metadata: {name: 1a}", refused: []string{"metadata.name"}},
		{name: "name with a dot", spec: "metadata: {name: a.b}", refused: []string{"metadata.name"}},
		{name: "cluster name", spec: "spec: {cluster: Big One}", refused: []string{"spec.cluster"}},
		{name: "cluster empty", spec: `spec: {cluster: ""}`, refused: []string{"spec.cluster"}},
		{name: "cluster changed", old: "spec: {cluster: a}", spec: "spec: {cluster: b}", refused: []string{"spec.cluster", "can not be changed"}},
		{name: "no instruments", spec: "spec: {instruments: []}", refused: []string{"spec.instruments"}},
		{name: "instruments missing", spec: "spec: {instruments: null}", refused: []string{"spec.instruments", "Required"}},
		{name: "instrument twice", spec: "spec: {instruments: [A, A]}", refused: []string{"spec.instruments[1]", "Duplicate"}},
		{name: "instrument too long", spec: "spec: {instruments: [ABCDEFGHIJKLMNOPQ]}", refused: []string{"spec.instruments[0]"}},
		{name: "instrument of 16", spec: "spec: {instruments: [ABCDEFGHIJKLMNOP, __ACCOUNT__]}"},
		{name: "instrument with a space", spec: `spec: {instruments: ["A B"]}`, refused: []string{"spec.instruments[0]"}},
		{name: "instrument empty", spec: `spec: {instruments: [""]}`, refused: []string{"spec.instruments[0]"}},
		{name: "too many instruments", spec: "spec: {instruments: [" + strings.Join(many, ",") + "]}", refused: []string{"spec.instruments", "10000"}},
		{name: "many instruments", spec: "spec: {instruments: [" + strings.Join(many[1:], ",") + "]}"},
		{name: "instruments changed", old: "spec: {instruments: [A]}", spec: "spec: {instruments: [B]}"},
		{name: "even replicas", spec: "spec: {replicas: 2}", refused: []string{"spec.replicas"}},
		{name: "no replicas", spec: "spec: {replicas: 0}", refused: []string{"spec.replicas"}},
		{name: "9 replicas", spec: "spec: {replicas: 9}", refused: []string{"spec.replicas"}},
		{name: "7 replicas", spec: "spec: {replicas: 7}"},
		{name: "fewer replicas", old: "spec: {replicas: 5}", spec: "spec: {replicas: 3}"},
		{name: "pull policy", spec: "spec: {imagePullPolicy: Sometimes}", refused: []string{"spec.imagePullPolicy"}},
		{name: "size too small", spec: "spec: {storage: {size: 1023Mi}}", refused: []string{"spec.storage.size", "1Gi or more"}},
		{name: "size as a number", spec: "spec: {storage: {size: 5}}", refused: []string{"spec.storage.size", "1Gi or more"}},
		{name: "size least", spec: "spec: {storage: {size: 1Gi}}"},
		{name: "size nonsense", spec: "spec: {storage: {size: big}}", refused: []string{"spec.storage.size"}},
		{name: "size lowered", old: "spec: {storage: {size: 20Gi}}", spec: "spec: {storage: {size: 19Gi}}", refused: []string{"spec.storage.size", "smaller"}},
		{name: "size raised", old: "spec: {storage: {size: 20Gi}}", spec: "spec: {storage: {size: 21Gi}}"},
		{name: "class changed", old: "spec: {storage: {className: fast}}", spec: "spec: {storage: {className: slow}}", refused: []string{"spec.storage.className", "can not be changed"}},
		{name: "class given later", update: true, spec: "spec: {storage: {className: slow}}", refused: []string{"spec.storage.className", "can not be changed"}},
		{name: "retention", spec: "spec: {storage: {retention: {whenScaled: Keep}}}", refused: []string{"spec.storage.retention.whenScaled"}},
		{name: "retention of deleted", spec: "spec: {storage: {retention: {whenDeleted: Keep}}}", refused: []string{"spec.storage.retention.whenDeleted"}},
		{name: "memtable", spec: "spec: {limits: {memtableBytes: 1}}", refused: []string{"spec.limits.memtableBytes"}},
		{name: "segment of odd size", spec: "spec: {limits: {segmentBytes: 2097153}}", refused: []string{"spec.limits.segmentBytes", "multiple"}},
		{name: "segment too small", spec: "spec: {limits: {segmentBytes: 4096}}", refused: []string{"spec.limits.segmentBytes"}},
		{name: "log cache", spec: "spec: {limits: {logCacheBytes: 1}}", refused: []string{"spec.limits.logCacheBytes"}},
		{name: "in flight", spec: "spec: {limits: {inFlightBytes: 1}}", refused: []string{"spec.limits.inFlightBytes"}},
		{name: "append window", spec: "spec: {limits: {appendWindow: 1025}}", refused: []string{"spec.limits.appendWindow"}},
		{name: "queries", spec: "spec: {limits: {queries: 65537}}", refused: []string{"spec.limits.queries"}},
		{name: "disk reserve", spec: "spec: {limits: {diskReserveBytes: 1}}", refused: []string{"spec.limits.diskReserveBytes"}},
		{name: "snapshot pace", spec: "spec: {limits: {snapshotSendBytesPerSecond: 5}}", refused: []string{"spec.limits.snapshotSendBytesPerSecond"}},
		{name: "heartbeat too short", spec: "spec: {timing: {heartbeatTimeout: 49ms}}", refused: []string{"spec.timing.heartbeatTimeout", "50ms to 1m"}},
		{name: "heartbeat too long", spec: "spec: {timing: {heartbeatTimeout: 61s}}", refused: []string{"spec.timing.heartbeatTimeout", "50ms to 1m"}},
		{name: "heartbeat nonsense", spec: "spec: {timing: {heartbeatTimeout: soon}}", refused: []string{"spec.timing.heartbeatTimeout"}},
		{name: "heartbeat", spec: "spec: {timing: {heartbeatTimeout: 250ms}}"},
		{name: "tls mode", spec: "spec: {tls: {mode: Maybe}}", refused: []string{"spec.tls.mode"}},
		{name: "tls off", spec: "spec: {tls: {mode: \"Off\"}}"},
		{name: "tls mode changed later", update: true, spec: "spec: {tls: {mode: \"Off\"}}", refused: []string{"spec.tls.mode", "can not be changed"}},
		{name: "provided", spec: "spec: {tls: {mode: Provided, secretName: a, operatorSecretName: b}}"},
		{name: "provided without a secret", spec: "spec: {tls: {mode: Provided, operatorSecretName: b}}", refused: []string{"spec.tls", "secretName is for mode Provided"}},
		{name: "provided with an empty secret", spec: "spec: {tls: {mode: Provided, secretName: \"\", operatorSecretName: b}}", refused: []string{"spec.tls", "secretName is for mode Provided"}},
		{name: "provided without the operator's", spec: "spec: {tls: {mode: Provided, secretName: a}}", refused: []string{"spec.tls", "operatorSecretName is for mode Provided"}},
		{name: "managed with a secret", spec: "spec: {tls: {secretName: a}}", refused: []string{"spec.tls", "secretName is for mode Provided"}},
		{name: "managed with the operator's", spec: "spec: {tls: {operatorSecretName: a}}", refused: []string{"spec.tls", "operatorSecretName is for mode Provided"}},
		{name: "another secret", old: "spec: {tls: {mode: Provided, secretName: a, operatorSecretName: b}}", spec: "spec: {tls: {mode: Provided, secretName: c, operatorSecretName: d}}"},
		{name: "short certificates", spec: "spec: {tls: {certificateLifetime: 59m}}", refused: []string{"spec.tls.certificateLifetime", "1h to 8760h"}},
		{name: "long certificates", spec: "spec: {tls: {certificateLifetime: 8761h, authorityLifetime: 87600h}}", refused: []string{"spec.tls.certificateLifetime", "1h to 8760h"}},
		{name: "long authority", spec: "spec: {tls: {authorityLifetime: 87601h}}", refused: []string{"spec.tls.authorityLifetime", "up to 87600h"}},
		{name: "short authority", spec: "spec: {tls: {certificateLifetime: 1h, authorityLifetime: 3h59m}}", refused: []string{"spec.tls", "four times"}},
		{name: "shortest", spec: "spec: {tls: {certificateLifetime: 1h, authorityLifetime: 4h}}"},
		{name: "other lifetimes", old: "spec: {tls: {certificateLifetime: 1h}}", spec: "spec: {tls: {certificateLifetime: 2h}}"},
		{name: "lifetime nonsense", spec: "spec: {tls: {certificateLifetime: long}}", refused: []string{"spec.tls"}},
	}
}

func TestRules(t *testing.T) {
	s := newServer(t)
	for _, c := range ruleCases() {
		t.Run(c.name, func(t *testing.T) {
			var old map[string]any
			if c.updates() {
				var err error
				if old, err = s.admit(parse(t, c.old), nil); err != nil {
					t.Fatalf("before: %v", err)
				}
			}
			_, err := s.admit(parse(t, c.spec), old)
			c.judge(t, err)
		})
	}
}

// The samples are what the API server takes.
func TestSamplesAreAdmitted(t *testing.T) {
	s := newServer(t)
	n := 0
	for _, pattern := range []string{"../../config/samples/*.yaml", "../../config/samples/*/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, doc := range strings.Split("\n"+string(text), "\n---") {
				obj := map[string]any{}
				if err := yaml.Unmarshal([]byte(doc), &obj); err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				if obj["kind"] != "InstrumentShard" {
					continue
				}
				n++
				obj = reencode(t, obj)
				if err := yaml.UnmarshalStrict([]byte(doc), new(InstrumentShard)); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				if _, err := s.admit(obj, nil); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
	}
	if n != 4 {
		t.Errorf("%d samples were tried", n)
	}
}
