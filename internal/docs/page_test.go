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
	followed := 0
	for _, page := range append(slices.Clone(pages), security, operations, guarantees) {
		for _, l := range readPage(t, page) {
			for _, m := range linkPattern.FindAllStringSubmatch(l.text, -1) {
				followed++
				name, heading, _ := strings.Cut(m[1], "#")
				to := page
				if name != "" {
					to = filepath.Join(filepath.Dir(page), name)
				}
				if _, err := os.Stat(filepath.Join(root, to)); err != nil {
					t.Errorf("%s:%d: %v", l.page, l.number, err)
				} else if heading != "" && !anchors(t, to)[heading] {
					t.Errorf("%s:%d: no heading of %s has the anchor %s", l.page, l.number, to, heading)
				}
			}
		}
	}
	t.Logf("%d links", followed)
}

// anchors returns those of a page's headings.
func anchors(t *testing.T, page string) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, l := range readPage(t, page) {
		all[anchor(l.heading)] = true
	}
	return all
}
