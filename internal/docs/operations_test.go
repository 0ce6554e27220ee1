package docs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

const operations = "docs/operations.md"

// Fields of a shard, values of the chart, metrics and flags that the page names are
// there.
func TestOperationsNameWhatThereIs(t *testing.T) {
	metrics, flags, values := realMetrics(t), theCode(t).serverFlags(), chartValues(t)
	for _, program := range []string{"/cmd/operator", "/cmd/kubectl-countinghouse", "/cmd/countinghouse"} {
		for name, value := range theCode(t).flags(module + program) {
			flags[name] = append(flags[name], value)
		}
	}
	checked := map[string]int{}
	for _, l := range readPage(t, operations) {
		for _, m := range namePattern.FindAllStringSubmatch(l.text, -1) {
			name := m[1]
			top, _, _ := strings.Cut(name, ".")
			var kind string
			var there bool
			switch {
			case metricName.MatchString(name):
				kind, there = "metric", metrics[name]
			case top == "spec" || top == "status":
				kind, there = "field", hasField(reflect.TypeFor[v1.InstrumentShard](), strings.Split(strings.Split(name, ":")[0], "."))
			case values[top] != nil && valueName.MatchString(name):
				kind, there = "value", has(values, strings.Split(strings.Split(name, "=")[0], "."))
			case flagName.MatchString(name):
				kind, there = "flag", flags[strings.TrimPrefix(name, "--")] != nil
			default:
				continue
			}
			if checked[kind]++; !there {
				t.Errorf("%s:%d: there is no %s %s", l.page, l.number, kind, name)
			}
		}
	}
	t.Logf("%v", checked)
	for kind, least := range map[string]int{"metric": 2, "field": 15, "value": 10, "flag": 2} {
		if checked[kind] < least {
			t.Errorf("only %d of kind %s were checked", checked[kind], kind)
		}
	}
}

var (
	valueName = regexp.MustCompile(`^[a-zA-Z]+(\.[a-zA-Z]+)+(=\w+)?$`)
	flagName  = regexp.MustCompile(`^--[a-z-]+$`)
)

// hasField reports whether a type has the field that a path of JSON names leads to.
func hasField(in reflect.Type, path []string) bool {
	for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice {
		in = in.Elem()
	}
	if len(path) == 0 || in.Kind() != reflect.Struct {
		return len(path) == 0
	}
	for i := range in.NumField() {
		f := in.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == path[0] {
			return hasField(f.Type, path[1:])
		}
	}
	return false
}

func chartValues(t *testing.T) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.Unmarshal(file(t, filepath.Join(root, "charts/countinghouse/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

func has(values map[string]any, path []string) bool {
	v, there := values[path[0]]
	if len(path) == 1 {
		return there
	}
	below, _ := v.(map[string]any)
	return has(below, path[1:])
}

// firstColumn returns the first cells of the table rows below a heading.
func firstColumn(t *testing.T, heading string) (cells []string) {
	t.Helper()
	for _, l := range readPage(t, operations) {
		if cell := strings.Split(l.text, "|"); l.heading == heading && len(cell) > 2 && !strings.HasPrefix(cell[1], "-") {
			cells = append(cells, strings.TrimSpace(cell[1]))
		}
	}
	if len(cells) == 0 {
		t.Fatalf("%s has no table under %q", operations, heading)
	}
	return cells[1:]
}

// Every condition of a shard is explained.
func TestOperationsExplainTheConditions(t *testing.T) {
	want := []string{
		v1.ConditionAvailable, v1.ConditionProgressing, v1.ConditionDegraded, v1.ConditionQuorumLost, v1.ConditionAccepted,
		v1.ConditionVolumesGrown, v1.ConditionCertificatesReady, v1.ConditionRecovery,
	}
	if got := firstColumn(t, "What to look at first"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Every panel of the dashboard is explained, in its order.
func TestOperationsExplainThePanels(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "charts/countinghouse/files/dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct{ Type, Title string }
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range board.Panels {
		if p.Type != "row" {
			want = append(want, p.Title)
		}
	}
	if got := firstColumn(t, "Read the dashboard"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
