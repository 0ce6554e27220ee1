package stablestore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"

	bolterrors "go.etcd.io/bbolt/errors"
)

// Check reads what Open would believe of the file at path, and changes nothing.
// The error matches fs.ErrNotExist if there is no file, and ErrCorrupt if it is
// damaged; it fails when another process has the file open.
func Check(path string) error {
	_, err := examine(path)
	return err
}

// examine returns the latest state in the file.
//
// bbolt writes each change to pages that were free, and then a meta page; a change
// that was acknowledged stands in the file until a later one was. So the latest
// whole state in the file is the one that was acknowledged last, or one whose
// write a crash interrupted just before its meta page. To take the latter for
// stored is safe: a server may always know a later term, or have voted without
// anybody having been told.
func examine(path string) (latest state, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return latest, fmt.Errorf("stable store: %w", err)
	}
	if len(content) == 0 { // create never leaves it so, and bbolt would begin anew
		return latest, fmt.Errorf("stable store %s: %w: it is empty: replace the member", path, ErrCorrupt)
	}
	stored, err := stored(path)
	if err != nil {
		return latest, err
	}
	latest = scan(content)
	if latest.serial < stored.serial {
		return latest, fmt.Errorf("stable store %s: %w: state %d is read, and the file has none later than %d: replace the member",
			path, ErrCorrupt, stored.serial, latest.serial)
	}
	return latest, nil
}

// scan returns the whole state of the highest serial in content.
func scan(content []byte) (latest state) {
	for {
		at := bytes.Index(content, []byte(stateMagic))
		if at < 0 {
			return latest
		}
		content = content[at:]
		st, rest, err := decodeState(content)
		if err != nil {
			rest = content[len(stateMagic):]
		}
		if err == nil && st.serial > latest.serial {
			latest = st
		}
		content = rest
	}
}

// stored returns the state that bbolt finds.
func stored(path string) (st state, err error) {
	err = guard(func() error {
		bolt, err := openBolt(path, true)
		if err != nil {
			return err
		}
		defer bolt.Close()
		st, err = New(bolt).state()
		return err
	})
	var io *fs.PathError
	switch {
	case err == nil:
		return st, nil
	case errors.As(err, &io) || errors.Is(err, bolterrors.ErrTimeout):
		return st, fmt.Errorf("stable store %s: %w", path, err)
	}
	return st, fmt.Errorf("stable store %s: %w: replace the member", path, errors.Join(ErrCorrupt, err))
}

// guard turns what bbolt makes of a damaged page into an error: it panics, or
// reads outside of the file.
func guard(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return read()
}

// adopt stores st unless it is stored already.
func (s *Store) adopt(st state) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.state()
	if err != nil || now.serial >= st.serial {
		return err
	}
	return s.inner.Set([]byte(keyState), st.encode())
}
