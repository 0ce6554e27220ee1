package v1

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
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
	var out map[string]any // numbers as a JSON decoder of the API server gives them
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
	var shard InstrumentShard
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(obj, &shard); err != nil {
		t.Fatal(err)
	}
	s := &shard.Spec
	got := fmt.Sprintln(s.Cluster, s.Replicas, s.ImagePullPolicy, s.Storage.Size.String(), s.Storage.Retention, s.Limits, s.Timing.HeartbeatTimeout.Duration, s.Resources.Requests.Memory())
	const want = "countinghouse 3 IfNotPresent 10Gi {Delete Retain} {8388608 67108864 67108864 67108864 64 256 268435456 104857600} 1s 512Mi\n"
	if got != want {
		t.Errorf("got  %swant %s", got, want)
	}
}

// Every rule of the CRD refuses what it is for, with a message that names the
// field, and lets through what is next to it.
func TestRules(t *testing.T) {
	s := newServer(t)
	long := strings.Repeat("a", 41)
	many := make([]string, 10_001)
	for i := range many {
		many[i] = fmt.Sprint("I", i)
	}
	for _, c := range []struct {
		name, old, spec string
		refused         []string // words of the error; none for what is taken
	}{
		{"as it is", "", "", nil},
		{"name too long", "", "metadata: {name: " + long + "}", []string{"metadata.name", "40"}},
		{"name of 40", "", "metadata: {name: " + long[1:] + "}", nil},
		{"name begins with a digit", "", "metadata: {name: 1a}", []string{"metadata.name"}},
		{"name with a dot", "", "metadata: {name: a.b}", []string{"metadata.name"}},
		{"cluster name", "", "spec: {cluster: Big One}", []string{"spec.cluster"}},
		{"cluster empty", "", `spec: {cluster: ""}`, []string{"spec.cluster"}},
		{"cluster changed", "spec: {cluster: a}", "spec: {cluster: b}", []string{"spec.cluster", "can not be changed"}},
		{"no instruments", "", "spec: {instruments: []}", []string{"spec.instruments"}},
		{"instruments missing", "", "spec: {instruments: null}", []string{"spec.instruments", "Required"}},
		{"instrument twice", "", "spec: {instruments: [A, A]}", []string{"spec.instruments[1]", "Duplicate"}},
		{"instrument too long", "", "spec: {instruments: [ABCDEFGHIJKLMNOPQ]}", []string{"spec.instruments[0]"}},
		{"instrument of 16", "", "spec: {instruments: [ABCDEFGHIJKLMNOP, __ACCOUNT__]}", nil},
		{"instrument with a space", "", `spec: {instruments: ["A B"]}`, []string{"spec.instruments[0]"}},
		{"instrument empty", "", `spec: {instruments: [""]}`, []string{"spec.instruments[0]"}},
		{"too many instruments", "", "spec: {instruments: [" + strings.Join(many, ",") + "]}", []string{"spec.instruments", "10000"}},
		{"many instruments", "", "spec: {instruments: [" + strings.Join(many[1:], ",") + "]}", nil},
		{"instruments changed", "spec: {instruments: [A]}", "spec: {instruments: [B]}", nil},
		{"even replicas", "", "spec: {replicas: 2}", []string{"spec.replicas"}},
		{"no replicas", "", "spec: {replicas: 0}", []string{"spec.replicas"}},
		{"9 replicas", "", "spec: {replicas: 9}", []string{"spec.replicas"}},
		{"7 replicas", "", "spec: {replicas: 7}", nil},
		{"fewer replicas", "spec: {replicas: 5}", "spec: {replicas: 3}", nil},
		{"pull policy", "", "spec: {imagePullPolicy: Sometimes}", []string{"spec.imagePullPolicy"}},
		{"size too small", "", "spec: {storage: {size: 1023Mi}}", []string{"spec.storage.size", "1Gi or more"}},
		{"size as a number", "", "spec: {storage: {size: 5}}", []string{"spec.storage.size", "1Gi or more"}},
		{"size least", "", "spec: {storage: {size: 1Gi}}", nil},
		{"size nonsense", "", "spec: {storage: {size: big}}", []string{"spec.storage.size"}},
		{"size lowered", "spec: {storage: {size: 20Gi}}", "spec: {storage: {size: 19Gi}}", []string{"spec.storage.size", "smaller"}},
		{"size raised", "spec: {storage: {size: 20Gi}}", "spec: {storage: {size: 21Gi}}", nil},
		{"class changed", "spec: {storage: {className: fast}}", "spec: {storage: {className: slow}}", []string{"spec.storage.className", "can not be changed"}},
		{"class given later", "", "spec: {storage: {className: slow}}", []string{"spec.storage.className", "can not be changed"}},
		{"retention", "", "spec: {storage: {retention: {whenScaled: Keep}}}", []string{"spec.storage.retention.whenScaled"}},
		{"retention of deleted", "", "spec: {storage: {retention: {whenDeleted: Keep}}}", []string{"spec.storage.retention.whenDeleted"}},
		{"memtable", "", "spec: {limits: {memtableBytes: 1}}", []string{"spec.limits.memtableBytes"}},
		{"segment of odd size", "", "spec: {limits: {segmentBytes: 2097153}}", []string{"spec.limits.segmentBytes", "multiple"}},
		{"segment too small", "", "spec: {limits: {segmentBytes: 4096}}", []string{"spec.limits.segmentBytes"}},
		{"log cache", "", "spec: {limits: {logCacheBytes: 1}}", []string{"spec.limits.logCacheBytes"}},
		{"in flight", "", "spec: {limits: {inFlightBytes: 1}}", []string{"spec.limits.inFlightBytes"}},
		{"append window", "", "spec: {limits: {appendWindow: 1025}}", []string{"spec.limits.appendWindow"}},
		{"queries", "", "spec: {limits: {queries: 65537}}", []string{"spec.limits.queries"}},
		{"disk reserve", "", "spec: {limits: {diskReserveBytes: 1}}", []string{"spec.limits.diskReserveBytes"}},
		{"snapshot pace", "", "spec: {limits: {snapshotSendBytesPerSecond: 5}}", []string{"spec.limits.snapshotSendBytesPerSecond"}},
		{"heartbeat too short", "", "spec: {timing: {heartbeatTimeout: 49ms}}", []string{"spec.timing.heartbeatTimeout", "50ms to 1m"}},
		{"heartbeat too long", "", "spec: {timing: {heartbeatTimeout: 61s}}", []string{"spec.timing.heartbeatTimeout", "50ms to 1m"}},
		{"heartbeat nonsense", "", "spec: {timing: {heartbeatTimeout: soon}}", []string{"spec.timing.heartbeatTimeout"}},
		{"heartbeat", "", "spec: {timing: {heartbeatTimeout: 250ms}}", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var old map[string]any
			if c.old != "" || strings.Contains(c.name, "later") {
				var err error
				if old, err = s.admit(parse(t, c.old), nil); err != nil {
					t.Fatalf("before: %v", err)
				}
			}
			_, err := s.admit(parse(t, c.spec), old)
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
		})
	}
}
