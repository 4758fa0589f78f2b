package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnAnchorThatIsNotThereOrTwiceIsNamed(t *testing.T) {
	stock := map[string][]byte{"a.go": []byte("package a\n\nvar x = 1\n\nvar y = 1\n")}
	_, err := apply(stock, []edit{
		{file: "a.go", why: "first", anchor: "var z", text: "x"},
		{file: "a.go", why: "second", anchor: "= 1", text: "x"},
		{file: "a.go", why: "third", anchor: "var x", where: replace, text: "var ("},
	})
	if err == nil {
		t.Fatal("every misfit passed")
	}
	for _, word := range []string{"first", "0 times", "second", "2 times", "does not parse"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error lacks %q: %v", word, err)
		}
	}
}

func TestEditsGoWhereTheySay(t *testing.T) {
	stock := map[string][]byte{"a.go": []byte("package a\n\nvar x = 1\n")}
	out, err := apply(stock, []edit{
		{file: "a.go", anchor: "var x = 1\n", where: before, text: "var w = 0\n"},
		{file: "a.go", anchor: "var x = 1\n", where: after, text: "var y = 2\n"},
		{file: "a.go", anchor: "package a", where: replace, text: "package b"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out["a.go"]), "package b\n\nvar w = 0\nvar x = 1\nvar y = 2\n"; got != want {
		t.Errorf("got %q", got)
	}
	if string(stock["a.go"]) != "package a\n\nvar x = 1\n" {
		t.Error("the stock file was changed")
	}
}

func TestAToolchainInTheModuleCacheIsRefused(t *testing.T) {
	err := checkToolchain("/home/u/go/pkg/mod/golang.org/toolchain@v0.0.1-go1.26.11.linux-amd64/src/crypto/tls", "/home/u/go/pkg/mod")
	if err == nil || !strings.Contains(err.Error(), "GOTOOLCHAIN=local") {
		t.Errorf("got %v", err)
	}
	if err := checkToolchain("/usr/local/go/src/crypto/tls", "/home/u/go/pkg/mod"); err != nil {
		t.Error(err)
	}
}

func TestAStockFileThatNobodyReviewedIsRefused(t *testing.T) {
	dir := t.TempDir()
	g := generator{added: "../_tls", reviewed: filepath.Join(dir, "reviewed.txt"), out: filepath.Join(dir, "out")}
	if err := g.run(); err == nil || !strings.Contains(err.Error(), "-accept") {
		t.Fatalf("unreviewed files passed: %v", err)
	}
	if _, err := os.Stat(g.out); err == nil {
		t.Error("the overlay was written all the same")
	}
	g.accept = true
	if err := g.run(); err != nil {
		t.Fatal(err)
	}
	g.accept = false
	if err := g.run(); err != nil {
		t.Errorf("reviewed files are refused: %v", err)
	}
}

func TestTheMarkFollowsTheText(t *testing.T) {
	g := generator{version: "go1.26.8"}
	one := g.mark(map[string][]byte{"a.go": []byte("x")})
	if two := g.mark(map[string][]byte{"a.go": []byte("y")}); one == two {
		t.Error("another text has the same mark")
	}
	if same := g.mark(map[string][]byte{"a.go": []byte("x"), "a_test.go": []byte("z")}); one != same {
		t.Error("a test changes the mark")
	}
	g.version = "go1.26.9"
	if other := g.mark(map[string][]byte{"a.go": []byte("x")}); one == other {
		t.Error("another Go has the same mark")
	}
}
