package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const guarantees = "docs/guarantees.md"

var (
	testName = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w+)`")
	command  = regexp.MustCompile("`go test \\./([a-z0-9/]+)(?: -run (Test\\w+))? -v`")
)

// A promise names the test that would fail, so the test must be there.
func TestGuaranteesNameTests(t *testing.T) {
	named := 0
	for _, l := range readPage(t, guarantees) {
		for _, m := range append(testName.FindAllStringSubmatch(l.text, -1), command.FindAllStringSubmatch(l.text, -1)...) {
			named++
			if !hasTest(t, m[1], m[2]) {
				t.Errorf("%s:%d: there is no test %s in %s", l.page, l.number, m[2], m[1])
			}
		}
	}
	if named < 190 {
		t.Errorf("%d tests are named only", named)
	}
}

// hasTest reports whether a test with that name, or one that begins with it, is
// in the folder.
func hasTest(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name) {
			return true
		}
	}
	return false
}
