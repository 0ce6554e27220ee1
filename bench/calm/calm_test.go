package calm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWritten(t *testing.T) {
	before, err := written()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "f"), bytes.Repeat([]byte{1}, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if after, err := written(); err != nil || after < before {
		t.Errorf("%d bytes before a write, %d after it, %v", before, after, err)
	}
}

func TestAwaitWrites(t *testing.T) {
	if err := AwaitWrites(t.Context()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := AwaitWrites(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
