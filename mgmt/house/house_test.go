package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/grailos/grail/"

// mayImport is the import table: what the packages of an area may import of ours, beyond the area itself. hv/abi and
// hv/guest are areas of their own.
var mayImport = map[string][]string{
	"ring":          {},
	"arch":          {},
	"vcpu":          {"arch", "ring"},
	"hv/abi":        {"ring"},
	"hv/guest":      {"ring", "hv/abi"},
	"hv":            {"arch", "ring", "vcpu", "hv/abi"},
	"drivervms":     {"hv", "hv/abi", "hv/guest", "ring", "arch"},
	"personalities": {"hv", "hv/abi", "hv/guest", "ring", "arch", "vcpu", "images"},
	"mgmt":          {"ring", "arch", "vcpu", "hv", "hv/abi", "hv/guest", "drivervms", "personalities", "images"},
	"images":        {},
}

// maxLines is the length of a file at which it is to be split.
const maxLines = 600

// source is a parsed Go file.
type source struct {
	path string // relative to the module's root
	file *ast.File
	text []byte
}

// sources returns every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	root := "../.."
	if b, err := os.ReadFile(filepath.Join(root, "go.mod")); err != nil || !bytes.HasPrefix(b, []byte("module "+strings.TrimSuffix(module, "/"))) {
		t.Fatalf("%s is not the module's root: %v", root, err)
	}
	var list []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(p) != ".go" {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, text, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		list = append(list, source{filepath.ToSlash(rel), f, text})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 100 {
		t.Fatalf("only %d Go files found", len(list))
	}
	return list
}

func (s source) imports(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, i := range s.file.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// area returns the area of a path within the module, and false if the table does not know it.
func area(p string) (string, bool) {
	parts := strings.Split(p, "/")
	if len(parts) > 1 {
		if a := parts[0] + "/" + parts[1]; mayImport[a] != nil {
			return a, true
		}
	}
	_, ok := mayImport[parts[0]]
	return parts[0], ok
}

func TestImportTable(t *testing.T) {
	for _, s := range sources(t) {
		from, ok := area(filepath.ToSlash(filepath.Dir(s.path)))
		if !ok {
			t.Errorf("%s lies in no area of the import table", s.path)
			continue
		}
		for _, i := range s.imports(t) {
			p, ours := strings.CutPrefix(i, module)
			if !ours {
				continue
			}
			to, ok := area(p)
			if !ok || to != from && !slices.Contains(mayImport[from], to) {
				t.Errorf("%s imports %s: %s may import only %v", s.path, i, from, mayImport[from])
			}
			if to == "mgmt" && from != "mgmt" {
				t.Errorf("%s imports %s: nobody imports mgmt", s.path, i)
			}
		}
	}
}

func TestArea(t *testing.T) {
	for p, want := range map[string]string{"hv": "hv", "hv/sys": "hv", "hv/abi": "hv/abi", "hv/guest": "hv/guest", "hv/guestbook": "hv",
		"ring/vhostuser": "ring", "drivervms/blk/guest": "drivervms"} {
		if got, ok := area(p); got != want || !ok {
			t.Errorf("%s: %q, %v", p, got, ok)
		}
	}
	if a, ok := area("kernel/x"); ok {
		t.Errorf("kernel/x: %q", a)
	}
}

// Raw memory is touched only where the file's name says so.
func TestUnsafe(t *testing.T) {
	for _, s := range sources(t) {
		if slices.Contains(s.imports(t), "unsafe") && !strings.Contains(filepath.Base(s.path), "_unsafe") {
			t.Errorf("%s imports unsafe; only files named *_unsafe.go, *_unsafe_GOARCH.go or *_unsafe_test.go may", s.path)
		}
	}
}

func TestLength(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !strings.HasSuffix(s.path, "_test.go") {
			t.Errorf("%s has %d lines; split it, the limit is %d", s.path, n, maxLines)
		}
	}
}

// Every package says what it is for.
func TestPackageDocs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		dir := filepath.Dir(s.path)
		documented[dir] = documented[dir] || strings.TrimSpace(s.file.Doc.Text()) != ""
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment; write a doc.go", dir)
		}
	}
}
