package reads

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/countinghouse/countinghouse/bench/history"
	"github.com/countinghouse/countinghouse/record"
)

// The keys: a byte for the kind, the instrument's number, then a seq, or an id and a
// seq. Numbers are big-endian, so that keys sort as they do.
//
//	'r' instrument seq          → the record, 128 bytes
//	'o' instrument order  seq   → nothing
//	't' instrument trade  seq   → nothing
const (
	keyRecord = 'r'
	keyOrder  = 'o'
	keyTrade  = 't'

	seqKeySize = 1 + 2 + 8
	idKeySize  = seqKeySize + 8
)

// peer is pebble with a user's keys.
type peer struct {
	dir     string
	cache   int64
	db      *pebble.DB
	streams []history.Stream
	bells   []bell
	key     [idKeySize]byte // append's
}

const peerNote = "pebble v2.1.7, newest format, defaults but for a block cache that holds everything, Bloom filters of 10 bits a key on all levels " +
	"(on the id for the keys by id), and no WAL, which a log in front of it would be for"

func openPeer(dir string, streams []history.Stream, cacheBytes int64) (*peer, error) {
	p := &peer{dir: dir, cache: cacheBytes, streams: streams, bells: make([]bell, len(streams))}
	return p, p.open()
}

func (p *peer) open() error {
	cache := pebble.NewCache(p.cache)
	defer cache.Unref()
	o := &pebble.Options{
		Cache: cache, Comparer: byPrefix(), FormatMajorVersion: pebble.FormatNewest, DisableWAL: true,
		Logger: quiet{},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	var err error
	p.db, err = pebble.Open(p.dir, o)
	return err
}

// byPrefix makes the part of a key by id that comes before the seq its prefix, so that
// the filters hold ids.
func byPrefix() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "bench.id-prefix"
	c.Split = func(key []byte) int {
		if len(key) == idKeySize {
			return idKeySize - 8
		}
		return len(key)
	}
	return &c
}

func appendSeqKey(dst []byte, stream int, seq uint64) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, keyRecord), uint16(stream))
	return binary.BigEndian.AppendUint64(dst, seq)
}

// appendIDKey appends the prefix of the keys by an id.
func appendIDKey(dst []byte, stream int, id record.ID) []byte {
	kind := byte(keyOrder)
	if id.Kind == record.TradeID {
		kind = keyTrade
	}
	dst = binary.BigEndian.AppendUint16(append(dst, kind), uint16(stream))
	return binary.BigEndian.AppendUint64(dst, id.Value)
}

func (p *peer) append(stream int, b record.Batch) error {
	batch := p.db.NewBatch()
	var ids [record.MaxIDs]record.ID
	for i := range b.Records {
		r := &b.Records[i]
		if err := batch.Set(appendSeqKey(p.key[:0], stream, r.Seq), r.Bytes(), nil); err != nil {
			return err
		}
		for _, id := range ids[:r.IDs(&ids)] {
			if id.Kind == record.AccountID {
				continue
			}
			key := binary.BigEndian.AppendUint64(appendIDKey(p.key[:0], stream, id), r.Seq)
			if err := batch.Set(key, nil, nil); err != nil {
				return err
			}
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	p.bells[stream].ring()
	return batch.Close()
}

func (p *peer) byID(_ context.Context, stream int, id record.ID) (a answer, err error) {
	var room [idKeySize]byte
	prefix := appendIDKey(room[:0], stream, id)
	it, err := p.db.NewIter(nil)
	if err != nil {
		return a, err
	}
	for ok := it.SeekPrefixGE(prefix); ok; ok = it.Next() {
		if err := p.get(&a, stream, binary.BigEndian.Uint64(it.Key()[len(prefix):])); err != nil {
			return a, errors.Join(err, it.Close())
		}
	}
	return a, it.Close()
}

func (p *peer) get(a *answer, stream int, seq uint64) error {
	var room [seqKeySize]byte
	value, closer, err := p.db.Get(appendSeqKey(room[:0], stream, seq))
	if err != nil {
		return err
	}
	a.add(value)
	return closer.Close()
}

func (p *peer) scan(stream int, from, to uint64) (a answer, err error) {
	it, err := p.db.NewIter(&pebble.IterOptions{
		LowerBound: appendSeqKey(nil, stream, from), UpperBound: appendSeqKey(nil, stream, to+1),
	})
	if err != nil {
		return a, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		a.add(it.Value())
	}
	return a, it.Close()
}

// follow is told of each commit, as a user of pebble would have to arrange it.
func (p *peer) follow(ctx context.Context, stream int, from uint64, seen func(uint64)) error {
	for {
		more := p.bells[stream].next()
		a, err := p.scan(stream, from, 1<<63)
		if err != nil {
			return err
		}
		if a.records > 0 {
			from += a.records
			seen(from - 1)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

// flush ends with all records in the lowest level, the best state to read from.
func (p *peer) flush() error {
	if err := p.db.Flush(); err != nil {
		return err
	}
	return p.db.Compact(context.Background(), []byte{0}, []byte{0xff}, true)
}

func (p *peer) reopen(between func(dir string) error) error {
	if err := p.close(); err != nil {
		return err
	}
	if err := between(p.dir); err != nil {
		return err
	}
	return p.open()
}

func (p *peer) close() error {
	if p.db == nil { // a reopening has failed
		return nil
	}
	db := p.db
	p.db = nil
	return db.Close()
}

// quiet passes on nothing but what is fatal.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	pebble.DefaultLogger.Fatalf(format, args...)
}
