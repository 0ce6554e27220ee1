package docs

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/server"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/storagenode"
)

const security = "docs/security.md"

// Who may do what is what the servers let them do.
func TestTheTablesOfRolesAreTheServers(t *testing.T) {
	for heading, access := range map[string]identity.Access{"Storage node": storagenode.Access, "Exchange": server.Access} {
		want := map[string][]string{}
		for method, roles := range access {
			var names []string
			for _, r := range roles {
				names = append(names, string(r))
			}
			slices.Sort(names)
			want[shortName(method)] = names
		}
		got := map[string][]string{}
		for _, l := range readPage(t, security) {
			cells := strings.Split(l.text, "|")
			if l.heading != heading || len(cells) != 4 || !strings.Contains(cells[1], "`") {
				continue
			}
			roles := strings.Split(strings.TrimSpace(cells[2]), ", ")
			slices.Sort(roles)
			for _, m := range namePattern.FindAllStringSubmatch(cells[1], -1) {
				if got[m[1]] != nil {
					t.Errorf("%s:%d: %s stands there twice", l.page, l.number, m[1])
				}
				got[m[1]] = roles
			}
		}
		for _, method := range slices.Sorted(maps.Keys(want)) {
			if !slices.Equal(got[method], want[method]) {
				t.Errorf("%s: %s: the page says %v, the code %v", heading, method, got[method], want[method])
			}
			delete(got, method)
		}
		if len(got) > 0 {
			t.Errorf("%s: the code knows no %v", heading, slices.Sorted(maps.Keys(got)))
		}
		t.Logf("%s: %d methods", heading, len(want))
	}
}

// shortName returns "Service.Method" of "/package.Service/Method".
func shortName(method string) string {
	return strings.ReplaceAll(method[strings.LastIndexByte(method, '.')+1:], "/", ".")
}
