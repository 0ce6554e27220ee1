package store

import "errors"

// Damage returns the first damage that a read, a merge or Verify has met in the
// shard's files since it was opened, or nil. Such a shard goes on: what is whole
// can be read, and what is written is kept. But another replica should serve.
func (s *Shard) Damage() error {
	if err := s.damage.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *Shard) noteDamage(err error) { s.damage.CompareAndSwap(nil, &err) }

// read counts err, the outcome of a read, and returns it.
func (s *Shard) read(err error) error {
	if errors.Is(err, ErrCorrupt) {
		s.metrics.corruptReads.Add(1)
		s.noteDamage(err)
	}
	return err
}
