package charts

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	yamlv3 "go.yaml.in/yaml/v3"
)

const (
	readme     = "countinghouse/README.md"
	valuesFile = "countinghouse/values.yaml"
)

// The README's table of values is made of values.yaml and its comments.
func TestREADMEListsTheValues(t *testing.T) {
	var document yamlv3.Node
	if err := yamlv3.Unmarshal(read(t, valuesFile), &document); err != nil {
		t.Fatal(err)
	}
	var rows []string
	describe(t, &rows, "", document.Content[0])
	table := "| Value | Default | |\n|---|---|---|\n" + strings.Join(rows, "")
	text := string(read(t, readme))
	begin, end := strings.Index(text, "| Value |"), strings.Index(text, "\n\n<!-- end of values -->")
	if begin < 0 || end < begin {
		t.Fatalf("%s has no table of values", readme)
	}
	want := text[:begin] + strings.TrimSuffix(table, "\n") + text[end:]
	if *rewrite {
		if err := os.WriteFile(readme, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != want {
		t.Errorf("%s does not list the values as values.yaml has them: run the test with -rewrite", readme)
	}
	t.Logf("%d values", len(rows))
}

// describe adds a row for each value below a node. What values are for stands in
// comments above them.
func describe(t *testing.T, rows *[]string, prefix string, n *yamlv3.Node) {
	t.Helper()
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := prefix + key.Value
		nested := value.Kind == yamlv3.MappingNode && value.Style != yamlv3.FlowStyle
		if nested {
			describe(t, rows, name+".", value)
			continue
		}
		var v any
		if err := value.Decode(&v); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		comment := strings.ReplaceAll(strings.ReplaceAll(key.HeadComment, "# ", ""), "\n", " ")
		*rows = append(*rows, fmt.Sprintf("| `%s` | `%s` | %s |\n", name, text, comment))
	}
}

// Every value has a place in the schema, and the schema has no others.
func TestSchemaHasTheValues(t *testing.T) {
	var document yamlv3.Node
	if err := yamlv3.Unmarshal(read(t, valuesFile), &document); err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(read(t, "countinghouse/values.schema.json"), &schema); err != nil {
		t.Fatal(err)
	}
	compare(t, "", document.Content[0], schema)
}

// ownedByOthers are in the schema, and not the chart's: Helm gives every chart global.
var ownedByOthers = regexp.MustCompile(`^(global|.*resources\.claims)$`)

func compare(t *testing.T, prefix string, n *yamlv3.Node, schema map[string]any) {
	t.Helper()
	properties, _ := schema["properties"].(map[string]any)
	if properties == nil {
		return
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%q takes properties that it does not know", prefix)
	}
	has := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		name := n.Content[i].Value
		has[name] = true
		below, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("the schema lacks %s%s", prefix, name)
			continue
		}
		compare(t, prefix+name+".", n.Content[i+1], below)
	}
	for name := range properties {
		if !has[name] && !ownedByOthers.MatchString(prefix+name) {
			t.Errorf("values.yaml lacks %s%s", prefix, name)
		}
	}
}
