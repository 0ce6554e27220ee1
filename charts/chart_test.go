package charts

import (
	_ "embed"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	extensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"

	"github.com/countinghouse/countinghouse/controllers/resource"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files and the chart's README")

// everything turns on all there is.
//
//go:embed testdata/values.yaml
var everything string

var valueSets = map[string]string{
	"default":    "",
	"everything": everything,
	"exchange":   "exchange: {enabled: true, tls: {enabled: false}, storage: {existingClaim: mine}}",
	"bare": "crds: {install: false}\nrbac: {create: false}\nserviceAccount: {create: false, name: mine}\n" +
		"metrics: {service: {enabled: false}}\nexchange: {enabled: true}\noperator: {resources: {}}",
	"renamed": "fullnameOverride: records\nserviceAccount: {name: sa, annotations: {a: b}}\noperator: {storageImage: other:v2}",
}

// Every set of values makes objects that are well-formed, named once, and whose
// pods meet the restricted Pod Security standard.
func TestRendersAreSound(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	pods, all := 0, 0
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			seen := map[string]bool{}
			for _, o := range render(t, values) {
				all++
				if id := o.kind + "/" + o.namespace + "/" + o.name; seen[id] {
					t.Errorf("%s is there twice", id)
				} else {
					seen[id] = true
				}
				if cluster := strings.HasPrefix(o.kind, "Cluster") || o.kind == "CustomResourceDefinition"; cluster == (o.namespace != "") {
					t.Errorf("%s %s has the namespace %q", o.kind, o.name, o.namespace)
				}
				spec, template := pod(o)
				if spec == nil {
					continue
				}
				pods++
				for _, result := range evaluator.EvaluatePod(restricted, &template.ObjectMeta, spec) {
					if !result.Allowed {
						t.Errorf("%s %s: %s: %s", o.kind, o.name, result.ForbiddenReason, result.ForbiddenDetail)
					}
				}
				if c := spec.Containers[0]; !*c.SecurityContext.ReadOnlyRootFilesystem {
					t.Errorf("%s %s can write to its image", o.kind, o.name)
				}
			}
		})
	}
	t.Logf("%d sets of values, %d objects, %d pods", len(valueSets), all, pods)
}

func TestGolden(t *testing.T) {
	for _, name := range []string{"default", "everything"} {
		text, stderr, err := template(t, "crds: {install: false}\n"+valueSets[name])
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, stderr)
		}
		path := filepath.Join("testdata", name+".yaml")
		if *rewrite {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != text {
			t.Errorf("%s is not what the chart renders: look at what changed with -rewrite and git diff", path)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The chart's CRD is the generated one, kept when the chart goes.
func TestCRD(t *testing.T) {
	generated := read(t, "../config/crd/countinghouse.io_instrumentshards.yaml")
	if string(read(t, "countinghouse/files/crd.yaml")) != string(generated) {
		t.Error("files/crd.yaml is not the generated CRD: run 'make generate'")
	}
	var want extensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(generated, &want); err != nil {
		t.Fatal(err)
	}
	got := find[extensionsv1.CustomResourceDefinition](t, render(t, ""), "CustomResourceDefinition", want.Name)
	if !reflect.DeepEqual(got.Spec, want.Spec) || got.Annotations["helm.sh/resource-policy"] != "keep" {
		t.Errorf("annotations %v, or another spec", got.Annotations)
	}
	for _, o := range render(t, "crds: {install: false}") {
		if o.kind == "CustomResourceDefinition" {
			t.Error("crds.install=false installs it")
		}
	}
}

// generatedRules returns the rules that the controllers ask for: of leases, and the others.
func generatedRules(t *testing.T) (leases, others []rbacv1.PolicyRule) {
	t.Helper()
	generated := read(t, "../config/rbac/role.yaml")
	if string(read(t, "countinghouse/files/role.yaml")) != string(generated) {
		t.Error("files/role.yaml is not the generated role: run 'make generate'")
	}
	var role rbacv1.ClusterRole
	if err := yaml.UnmarshalStrict(generated, &role); err != nil {
		t.Fatal(err)
	}
	for _, r := range role.Rules {
		if slices.Contains(r.APIGroups, "coordination.k8s.io") {
			leases = append(leases, r)
		} else {
			others = append(others, r)
		}
	}
	if len(leases) != 1 || len(others) < 6 {
		t.Fatalf("%d rules of leases, %d others", len(leases), len(others))
	}
	return leases, others
}

func TestRulesAreTheControllers(t *testing.T) {
	leases, others := generatedRules(t)
	wide := render(t, "")
	if got := find[rbacv1.ClusterRole](t, wide, "ClusterRole", "system-x-operator").Rules; !reflect.DeepEqual(got, others) {
		t.Errorf("cluster-wide: %+v", got)
	}
	own := find[rbacv1.Role](t, wide, "Role", "x-operator-leases")
	events := rbacv1.PolicyRule{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}}
	if want := append(slices.Clone(leases), events); !reflect.DeepEqual(own.Rules, want) || own.Namespace != namespace {
		t.Errorf("in its own namespace: %+v", own)
	}

	narrow := render(t, "watchNamespaces: [a, b]")
	var bound []string
	for _, o := range narrow {
		switch v := o.typed.(type) {
		case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding:
			t.Errorf("the namespaced form has the %s %s", o.kind, o.name)
		case *rbacv1.Role:
			if v.Name == "system-x-operator" && !reflect.DeepEqual(v.Rules, others) {
				t.Errorf("in %s: %+v", v.Namespace, v.Rules)
			}
		case *rbacv1.RoleBinding:
			bound = append(bound, v.Namespace+"/"+v.RoleRef.Name)
			if s := v.Subjects[0]; s.Name != "x-operator" || s.Namespace != namespace {
				t.Errorf("%s is bound to %+v", v.Name, s)
			}
		}
	}
	if want := []string{"a/system-x-operator", "b/system-x-operator", "system/x-operator-leases"}; !reflect.DeepEqual(slices.Sorted(slices.Values(bound)), want) {
		t.Errorf("bound are %v", bound)
	}
	if args := find[appsv1.Deployment](t, narrow, "Deployment", "x-operator").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--namespaces=a,b") {
		t.Errorf("arguments %v", args)
	}
}

// Storage nodes let in the operator and the exchange by these labels, whatever the
// release is called.
func TestPodsAreLetIn(t *testing.T) {
	for _, values := range []string{"exchange: {enabled: true}", "fullnameOverride: records\nexchange: {enabled: true}"} {
		for _, o := range render(t, values) {
			_, template := pod(o)
			switch {
			case o.kind == "Deployment" && (template.Labels[resource.LabelName] != "countinghouse" || template.Labels[resource.LabelComponent] != "operator"):
				t.Errorf("the operator has the labels %v", template.Labels)
			case o.kind == "StatefulSet" && template.Labels[resource.LabelAccess] != resource.AccessAllowed:
				t.Errorf("the exchange has the labels %v", template.Labels)
			}
		}
	}
}

func TestExchange(t *testing.T) {
	objects := render(t, everything)
	set := find[appsv1.StatefulSet](t, objects, "StatefulSet", "x-exchange")
	args := set.Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--shards-from=kubernetes", "--cluster=demo", "--init", "--instruments=/instruments/instruments.yaml", "--tls-dir=/tls"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %v", want, args)
		}
	}
	volumes := map[string]corev1.VolumeSource{}
	for _, v := range set.Spec.Template.Spec.Volumes {
		volumes[v.Name] = v.VolumeSource
	}
	if volumes["tls"].Secret.SecretName != "demo-exchange-tls" || volumes["data"].PersistentVolumeClaim.ClaimName != "x-exchange-outbox" ||
		volumes["instruments"].ConfigMap.Name != "x-exchange-instruments" || *set.Spec.Replicas != 1 {
		t.Errorf("volumes %+v, %d replicas", volumes, *set.Spec.Replicas)
	}
	claim := find[corev1.PersistentVolumeClaim](t, objects, "PersistentVolumeClaim", "x-exchange-outbox")
	if claim.Annotations["helm.sh/resource-policy"] != "keep" {
		t.Error("the outbox goes with the chart")
	}
	role := find[rbacv1.Role](t, objects, "Role", "x-exchange")
	if want := []rbacv1.PolicyRule{{APIGroups: []string{"countinghouse.io"}, Resources: []string{"instrumentshards"}, Verbs: []string{"get", "list", "watch"}}}; !reflect.DeepEqual(role.Rules, want) {
		t.Errorf("the exchange may %+v", role.Rules)
	}
}

// The subscriber is a sidecar, which ends after the exchange, and shares its outbox.
func TestExternalSubscriber(t *testing.T) {
	if set := find[appsv1.StatefulSet](t, render(t, "exchange: {enabled: true}"), "StatefulSet", "x-exchange"); len(set.Spec.Template.Spec.InitContainers) != 0 {
		t.Error("there is a sidecar that nobody asked for")
	}
	spec := find[appsv1.StatefulSet](t, render(t, everything), "StatefulSet", "x-exchange").Spec.Template.Spec
	side := spec.InitContainers[0]
	if side.RestartPolicy == nil || *side.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the subscriber is no sidecar")
	}
	if side.ReadinessProbe != nil {
		t.Error("a subscriber that waits keeps orders from the exchange")
	}
	mounts := func(c *corev1.Container) map[string]string {
		all := map[string]string{}
		for _, m := range c.VolumeMounts {
			all[m.Name] = m.MountPath
		}
		return all
	}
	main := &spec.Containers[0]
	if !slices.Contains(main.Args, "--subscriber=external") || !slices.Contains(main.Args, "--outbox=/data/outbox") || mounts(main)["data"] != "/data" {
		t.Errorf("the exchange has the arguments %v", main.Args)
	}
	for _, want := range []string{"--outbox=/data/outbox", "--shards=/data/outbox.shards", "--cluster=demo", "--tls-dir=/tls"} {
		if !slices.Contains(side.Args, want) {
			t.Errorf("no %s in %v", want, side.Args)
		}
	}
	if m := mounts(&side); m["data"] != "/data" || m["tls"] != "/tls" {
		t.Errorf("the subscriber has the mounts %v", m)
	}
}

// refused are values that are wrong, and how Helm names them.
var refused = map[string]string{
	"imgae: {}": "imgae",
	`operator: {replica: 1, replicas: many, workers: 0, logLevel: loud, extraArgs: [x]}
watchNamespaces: [Trading]
image: {pullPolicy: Sometimes}
exchange: {enabled: maybe, quota: lots, closeWait: soon, preset: fast, subscriber: none, storage: {size: big}, service: {port: 70000}, replicas: 2}
shards: [{name: A}]
metrics: {podMonitor: {interval: slow}}`: "replica replicas workers logLevel extraArgs watchNamespaces pullPolicy enabled quota closeWait preset subscriber size port shards spec interval",
	"watchNamespaces: [a, a]": "watchNamespaces",
}

// A value that is wrong is refused, and named.
func TestSchemaRefuses(t *testing.T) {
	n := 0
	for values, fields := range refused {
		_, stderr, err := template(t, values)
		if err == nil {
			t.Errorf("%s is taken", values)
		}
		for field := range strings.FieldsSeq(fields) {
			n++
			if !regexp.MustCompile(`[./'"]` + field + `\b`).MatchString(stderr) {
				t.Errorf("no %s among what is wrong: %s", field, stderr)
			}
		}
	}
	if _, stderr, err := template(t, "serviceAccount: {create: false}"); err == nil || !strings.Contains(stderr, "serviceAccount.name") {
		t.Errorf("%v, %s", err, stderr)
	}
	t.Logf("%d fields", n)
}

// Helm can not create objects of a kind that the same release brings, and would say
// so in words of its own.
func TestShardsNeedTheCRD(t *testing.T) {
	values := []string{"--set", "shards[0].name=a", "--set", "shards[0].spec.cluster=x"}
	_, stderr, err := run(t, append([]string{"template", release, chart, "--kube-version", kubeVersion}, values...)...)
	if err == nil || !strings.Contains(stderr, "add them with helm upgrade") {
		t.Errorf("%v, %s", err, stderr)
	}
}

var flagOf = regexp.MustCompile(`^--([a-z-]+)`)

// Whatever pods are given on their command line, their programs know.
func TestArgumentsAreFlags(t *testing.T) {
	sources := map[string]string{}
	for _, program := range []string{"operator", "exchange", "countinghouse"} {
		for _, dir := range []string{"../cmd/" + program, "../exchange/launch"} {
			err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
					sources[program] += string(read(t, path))
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	manifests := render(t, everything)
	manifests = append(manifests, parse(t, string(read(t, "../config/manager/deployment.yaml")))...)
	manifests = append(manifests, parse(t, string(read(t, "../config/samples/exchange.yaml")))...)
	checked := 0
	for _, o := range manifests {
		spec, _ := pod(o)
		if spec == nil {
			continue
		}
		for _, c := range append(spec.InitContainers, spec.Containers[0]) {
			program := strings.TrimPrefix(c.Command[0], "/")
			for _, arg := range append(slices.Clone(c.Command[1:]), c.Args...) {
				m := flagOf.FindStringSubmatch(arg)
				if m == nil || m[1] == "tls-dir" { // bound by a package that all programs share
					continue
				}
				checked++
				if !strings.Contains(sources[program], `"`+m[1]+`"`) {
					t.Errorf("%s %s: %s knows no --%s", o.kind, o.name, program, m[1])
				}
			}
		}
	}
	if checked < 25 {
		t.Errorf("only %d arguments were checked", checked)
	}
}

// alert is one of the rules in files/alerts.yaml.
type alert struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

var heading = regexp.MustCompile(`(?m)^#+ (.*)$`)

// Each alert says how bad it is, and where its remedy is written.
func TestAlertsHaveRemedies(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []alert
		}
	}
	if err := yaml.UnmarshalStrict(read(t, "countinghouse/files/alerts.yaml"), &rules); err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(read(t, "../docs/operations.md")), -1) {
		anchors[strings.ToLower(m[1])] = true
	}
	n := 0
	for _, g := range rules.Groups {
		for _, a := range g.Rules {
			n++
			anchor := strings.ToLower(a.Alert)
			if a.Annotations["runbook"] != "docs/operations.md#"+anchor || !anchors[anchor] {
				t.Errorf("%s: runbook %q, in the page: %t", a.Alert, a.Annotations["runbook"], anchors[anchor])
			}
			if s := a.Labels["severity"]; s != "warning" && s != "critical" || a.Annotations["summary"] == "" || a.Expr == "" {
				t.Errorf("%s: severity %q, summary %q", a.Alert, s, a.Annotations["summary"])
			}
		}
	}
	t.Logf("%d alerts", n)
}

func TestDashboardIsWhole(t *testing.T) {
	var board struct {
		Panels []struct {
			ID          int
			Type, Title string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, "countinghouse/files/dashboard.json"), &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q has the id of another", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && (len(p.Targets) == 0 || p.Targets[0].Expr == "") {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
	}
	t.Logf("%d panels", len(board.Panels))
}
