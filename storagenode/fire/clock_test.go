package fire

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// wallTime is where the storage node takes a time apart into a number or a date,
// or makes a time of one, and why the wall clock may jump there.
var wallTime = map[string]string{
	"wal/frame.go unixNanos":                        "AppendedAt, of which a metric is made",
	"wal/frame.go frameHeader.entry":                "the same",
	"replica/transport_convert.go entriesToProto":   "the same",
	"replica/transport_convert.go entriesFromProto": "the same",
	"replica/identity.go writeIdentity":             "a date for people",
	"replica/recovery.go Replica.planRecovery":      "the same",
	"replica/recovery.go Recovery.proto":            "the same",
	"replica/snapshots.go snapshotStore.id":         "never falls: it is at least one more than the one before",
}

// takesApart are the methods of time.Time and the functions of package time that
// do away with the monotonic clock, or have never had it.
var takesApart = []string{
	"Unix", "UnixNano", "UnixMilli", "UnixMicro", "UTC", "Local", "In", "Date", "Clock", "YearDay", "ISOWeek", "Weekday",
	"AppendFormat", "GobEncode", "Parse", "ParseInLocation", "ModTime",
}

// Everything else reckons with differences of time.Now, which go by the monotonic
// clock.
func TestWallTimeDecidesNothing(t *testing.T) {
	found := map[string]bool{}
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files++
		for _, decl := range file.Decls {
			if usesWallTime(decl) {
				found[strings.TrimPrefix(filepath.ToSlash(path), "../")+" "+nameOf(decl)] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range slices.Sorted(maps.Keys(found)) {
		if wallTime[place] == "" {
			t.Errorf("%s takes a time apart: use differences of time.Now, or say here why the wall clock may jump", place)
		}
	}
	for place := range wallTime {
		if !found[place] {
			t.Errorf("%s does not use the wall clock any more", place)
		}
	}
	if files < 50 {
		t.Errorf("only %d files were read", files)
	}
	t.Logf("%d files, %d places", files, len(found))
}

func usesWallTime(decl ast.Decl) (uses bool) {
	ast.Inspect(decl, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains(takesApart, s.Sel.Name) {
			uses = true
		}
		return true
	})
	return uses
}

func nameOf(decl ast.Decl) string {
	f, ok := decl.(*ast.FuncDecl)
	if !ok {
		return "(declaration)"
	}
	if f.Recv == nil {
		return f.Name.Name
	}
	return strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*") + "." + f.Name.Name
}
