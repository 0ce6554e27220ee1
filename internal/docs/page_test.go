package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root    = "../.."
	formats = "docs/formats.md"
	bounds  = "docs/bounds.md"
)

var pages = []string{formats, bounds}

// line is a line of a page outside of code blocks.
type line struct {
	page    string
	number  int
	heading string // the nearest one above, without its number signs
	text    string
}

func readPage(t *testing.T, page string) []line {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	var lines []line
	heading, fenced := "", false
	for i, text := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(text, "```") {
			fenced = !fenced
			continue
		}
		if fenced {
			continue
		}
		if strings.HasPrefix(text, "#") {
			heading = strings.TrimLeft(text, "# ")
		}
		lines = append(lines, line{page, i + 1, heading, text})
	}
	return lines
}

var (
	linkPattern = regexp.MustCompile(`\]\(([^)]+)\)`)
	notAnchor   = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchor returns the name by which GitHub and GitLab link to a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(notAnchor.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range append(slices.Clone(pages), security) {
		anchors := map[string]bool{}
		lines := readPage(t, page)
		for _, l := range lines {
			anchors[anchor(l.heading)] = true
		}
		for _, l := range lines {
			for _, m := range linkPattern.FindAllStringSubmatch(l.text, -1) {
				if name, local := strings.CutPrefix(m[1], "#"); local {
					if !anchors[name] {
						t.Errorf("%s:%d: no heading has the anchor %s", l.page, l.number, name)
					}
				} else if _, err := os.Stat(filepath.Join(root, filepath.Dir(page), m[1])); err != nil {
					t.Errorf("%s:%d: %v", l.page, l.number, err)
				}
			}
		}
	}
}
