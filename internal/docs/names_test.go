package docs

import (
	"go/constant"
	"go/types"
	"regexp"
	"strings"
	"testing"
)

var (
	namePattern = regexp.MustCompile("`([^`]+)`")
	goName      = regexp.MustCompile(`^[a-z][a-z0-9]*(\.\w+)+$`)
	metricName  = regexp.MustCompile(`^(countinghouse|storagenode)_[a-z_]+$`)
	blank       = regexp.MustCompile(`<[^>]*>`) // as in segment-<number>
	claim       = regexp.MustCompile("`([^`]+)` = ([0-9][0-9,]*)( (?:KiB|MiB|GiB|ms|s|min)\\b)?")
)

// Whatever a page sets in type is to be found in the code: a name of a package,
// a flag, a piece of a source's text, a file. Metrics have a test of their own.
func TestNamesExist(t *testing.T) {
	c := theCode(t)
	flags, text := c.serverFlags(), c.text.String()
	for _, page := range pages {
		for _, l := range readPage(t, page) {
			for _, m := range namePattern.FindAllStringSubmatch(l.text, -1) {
				if name := m[1]; !exists(c, flags, text, name) {
					t.Errorf("%s:%d: the code knows no %s", l.page, l.number, name)
				}
			}
		}
	}
}

func exists(c *code, flags map[string][]constant.Value, text, name string) bool {
	if flag, ok := strings.CutPrefix(name, "--"); ok {
		return flags[flag] != nil
	}
	if pkg, _, _ := strings.Cut(name, "."); goName.MatchString(name) && c.byName[pkg] != nil {
		return c.lookup(name) != nil
	}
	if metricName.MatchString(name) || c.basename[name] {
		return true
	}
	for _, piece := range blank.Split(name, -1) {
		if !strings.Contains(text, strings.Trim(piece, "*/")) {
			return false
		}
	}
	return true
}

// Where a page says "`name` = value", that is the constant's value or the flag's
// default.
func TestValuesAreTheCodes(t *testing.T) {
	c := theCode(t)
	flags, checked := c.serverFlags(), 0
	for _, page := range pages {
		for _, l := range readPage(t, page) {
			for _, m := range claim.FindAllStringSubmatch(l.text, -1) {
				want, ok := quantity(m[2] + m[3])
				if !ok {
					t.Fatalf("%s:%d: %q is no quantity", l.page, l.number, m[2]+m[3])
				}
				values := flags[strings.TrimPrefix(m[1], "--")]
				if obj, ok := c.lookupConst(m[1]); ok {
					values = []constant.Value{obj.Val()}
				}
				if len(values) == 0 {
					t.Errorf("%s:%d: %s is neither a constant nor a flag", l.page, l.number, m[1])
				}
				for _, v := range values {
					if got, ok := number(v); !ok || got.Cmp(want) != 0 {
						t.Errorf("%s:%d: %s is %v, the page says %s", l.page, l.number, m[1], v, m[2]+m[3])
					}
					checked++
				}
			}
		}
	}
	if checked < 80 {
		t.Errorf("only %d values were checked", checked)
	}
}

func (c *code) lookupConst(name string) (*types.Const, bool) {
	if !goName.MatchString(name) {
		return nil, false
	}
	obj, ok := c.lookup(name).(*types.Const)
	return obj, ok
}
