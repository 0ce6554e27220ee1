package docs

import (
	"go/ast"
	"go/build"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/countinghouse/countinghouse"

// code is what the pages speak of: the module's packages, checked as far as
// that is possible without those of others, and the text of all its sources.
type code struct {
	fset     *token.FileSet
	info     types.Info
	byPath   map[string]*types.Package
	byName   map[string][]*types.Package
	files    map[string][]*ast.File // by import path
	text     strings.Builder
	basename map[string]bool // of every file
}

var loadCode = sync.OnceValues(func() (*code, error) {
	c := &code{
		fset: token.NewFileSet(), info: types.Info{Types: map[ast.Expr]types.TypeAndValue{}},
		byPath: map[string]*types.Package{}, byName: map[string][]*types.Package{}, files: map[string][]*ast.File{}, basename: map[string]bool{},
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == "tools" || name == "bin" || name == "docs" || strings.HasPrefix(name, ".") && path != root):
			return filepath.SkipDir
		case d.IsDir():
			return c.load(path)
		default:
			return c.read(path, name)
		}
	})
	return c, err
})

func theCode(t *testing.T) *code {
	t.Helper()
	c, err := loadCode()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// read takes in the text of a source file; generated code and tests say nothing.
func (c *code) read(path, name string) error {
	c.basename[name] = true
	source := strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, ".pb.go") && !strings.HasSuffix(name, "_test.go")
	if !source && !strings.HasSuffix(name, ".proto") {
		return nil
	}
	b, err := os.ReadFile(path)
	c.text.Write(b)
	return err
}

// load checks the package in dir, if there is one.
func (c *code) load(dir string) error {
	rel, err := filepath.Rel(root, dir)
	if err != nil {
		return err
	}
	if pkg, err := build.ImportDir(dir, 0); err == nil && len(pkg.GoFiles) > 0 {
		_, err = c.Import(module + "/" + filepath.ToSlash(rel))
		return err
	}
	return nil // no Go package
}

// Import implements types.Importer. Packages of others are empty, but for what
// durations need.
func (c *code) Import(path string) (*types.Package, error) {
	if pkg := c.byPath[path]; pkg != nil {
		return pkg, nil
	}
	rel, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		c.byPath[path] = foreign(path)
		return c.byPath[path], nil
	}
	dir := filepath.Join(root, rel)
	found, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, err
	}
	for _, name := range found.GoFiles {
		f, err := parser.ParseFile(c.fset, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		c.files[path] = append(c.files[path], f)
	}
	// What depends on the packages of others is in error, and left out.
	config := types.Config{Importer: c, Error: func(error) {}}
	pkg, _ := config.Check(path, c.fset, c.files[path], &c.info)
	c.byPath[path] = pkg
	c.byName[found.Name] = append(c.byName[found.Name], pkg)
	return pkg, nil
}

func foreign(path string) *types.Package {
	switch path {
	case "unsafe":
		return types.Unsafe
	case "time":
		return timePackage()
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	if strings.HasPrefix(name, "v") && strings.Count(path, "/") > 2 { // such as raft-boltdb/v2
		name = "foreign"
	}
	pkg := types.NewPackage(path, name)
	pkg.MarkComplete()
	return pkg
}

func timePackage() *types.Package {
	pkg := types.NewPackage("time", "time")
	duration := types.NewTypeName(token.NoPos, pkg, "Duration", nil)
	types.NewNamed(duration, types.Typ[types.Int64], nil)
	pkg.Scope().Insert(duration)
	for name, nanos := range map[string]int64{
		"Nanosecond": 1, "Microsecond": 1e3, "Millisecond": 1e6, "Second": 1e9, "Minute": 60e9, "Hour": 3600e9,
	} {
		pkg.Scope().Insert(types.NewConst(token.NoPos, pkg, name, duration.Type(), constant.MakeInt64(nanos)))
	}
	pkg.MarkComplete()
	return pkg
}

// lookup returns what "package.Name" or "package.Type.Field" names, or nil.
func (c *code) lookup(name string) types.Object {
	parts := strings.Split(name, ".")
	for _, pkg := range c.byName[parts[0]] {
		obj := pkg.Scope().Lookup(parts[1])
		for _, field := range parts[2:] {
			if obj != nil {
				obj, _, _ = types.LookupFieldOrMethod(obj.Type(), true, pkg, field)
			}
		}
		if obj != nil {
			return obj
		}
	}
	return nil
}

// flags returns the defaults of the flags that a package binds, nil where one is
// no constant.
func (c *code) flags(path string) map[string]constant.Value {
	found := map[string]constant.Value{}
	for _, f := range c.files[path] {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 4 {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			if name := c.info.Types[call.Args[1]].Value; ok && name != nil && strings.HasSuffix(fun.Sel.Name, "Var") {
				found[constant.StringVal(name)] = c.info.Types[call.Args[2]].Value
			}
			return true
		})
	}
	return found
}

// serverFlags returns the flags of both servers, and of the subscriber where that
// is a process of its own.
func (c *code) serverFlags() map[string][]constant.Value {
	all := map[string][]constant.Value{}
	for _, path := range []string{module + "/storagenode/node", module + "/cmd/exchange", module + "/exchange/launch", module + "/cmd/countinghouse/carrier"} {
		for name, value := range c.flags(path) {
			all[name] = append(all[name], value)
		}
	}
	return all
}

var unitFactors = map[string]int64{
	"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "ms": 1e6, "s": 1e9, "min": 60e9,
}

var quantityPattern = regexp.MustCompile(`^([0-9,]+) ?(KiB|MiB|GiB|ms|s|min)?$`)

// quantity returns "4 MiB", "1GiB", "1,024" or "10 s" as a number; durations are
// in nanoseconds.
func quantity(s string) (*big.Int, bool) {
	m := quantityPattern.FindStringSubmatch(s)
	if m == nil {
		return nil, false
	}
	n, ok := new(big.Int).SetString(strings.ReplaceAll(m[1], ",", ""), 10)
	if !ok {
		return nil, false
	}
	return n.Mul(n, big.NewInt(unitFactors[m[2]])), true
}

// number returns a constant as a number.
func number(v constant.Value) (*big.Int, bool) {
	if v == nil {
		return nil, false
	}
	if v.Kind() == constant.String {
		return quantity(constant.StringVal(v))
	}
	n, ok := new(big.Int).SetString(constant.ToInt(v).ExactString(), 10)
	return n, ok
}
