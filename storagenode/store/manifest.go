package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/sstable"
)

const (
	manifestMagic      = "CHINSTR1"
	manifestVersion    = 1
	manifestHeaderSize = 256
	manifestTableSize  = 48
	manifestTablesMax  = 1 << 16
	manifestBytesMax   = manifestHeaderSize + manifestTablesMax*manifestTableSize + 4
)

// tableMeta is what a manifest says of a table.
type tableMeta struct {
	first, last      uint64
	size             int64
	minTime, maxTime int64
	crc              uint32 // CRC32C of the file
	chain            uint32 // of the stream up to last
}

func metaOf(info *sstable.Info) tableMeta {
	return tableMeta{
		first: info.FirstSeq, last: info.LastSeq, size: info.Size, crc: info.CRC,
		minTime: info.MinTime, maxTime: info.MaxTime, chain: info.ChainAfter,
	}
}

// manifest is an instrument's state at one Raft index, as a file. Its tables
// hold every record up to lastSeq.
type manifest struct {
	instrument          record.Symbol
	index               uint64 // of the last entry that changed the instrument
	epoch               uint64
	lastSeq, lastGlobal uint64
	firstTime, lastTime int64
	chain               uint32
	lastRecord          *record.Record // nil when lastSeq is 0
	tables              []tableMeta
}

func (m *manifest) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, manifestHeaderSize, manifestHeaderSize+len(m.tables)*manifestTableSize+4)
	copy(b, manifestMagic)
	le.PutUint16(b[8:], manifestVersion)
	le.PutUint16(b[10:], manifestHeaderSize)
	le.PutUint32(b[12:], uint32(len(m.tables)))
	copy(b[16:], m.instrument[:])
	for i, v := range []uint64{m.index, m.epoch, m.lastSeq, m.lastGlobal, uint64(m.firstTime), uint64(m.lastTime)} {
		le.PutUint64(b[32+8*i:], v)
	}
	le.PutUint32(b[80:], m.chain)
	if m.lastRecord != nil {
		copy(b[128:], m.lastRecord.Bytes())
	}
	for i := range m.tables {
		t := &m.tables[i]
		for _, v := range []uint64{t.first, t.last, uint64(t.size), uint64(t.minTime), uint64(t.maxTime)} {
			b = le.AppendUint64(b, v)
		}
		b = le.AppendUint32(b, t.crc)
		b = le.AppendUint32(b, t.chain)
	}
	return appendCRC(b)
}

func appendCRC(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, record.Castagnoli))
}

// cutCRC checks and cuts off the four bytes at the end of b, and checks magic
// and version, which all files of this package have at the same place.
func cutCRC(b []byte, headerSize int, magic string, version uint16) ([]byte, error) {
	if len(b) < headerSize+4 {
		return nil, fmt.Errorf("%w: %d bytes; the header alone has %d", ErrCorrupt, len(b), headerSize)
	}
	if string(b[:8]) != magic {
		return nil, fmt.Errorf("%w: magic %q, not %q", ErrCorrupt, b[:8], magic)
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, record.Castagnoli), binary.LittleEndian.Uint32(b[len(body):]); got != want {
		return nil, fmt.Errorf("%w: CRC32C is %08x, stored is %08x", ErrCorrupt, got, want)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != version {
		return nil, fmt.Errorf("%w %d (this build reads version %d)", record.ErrVersion, v, version)
	}
	return body, nil
}

// parseManifest is the inverse of encode. It checks all that can be checked
// without the tables; errors wrap ErrCorrupt or record.ErrVersion.
func parseManifest(b []byte) (*manifest, error) {
	b, err := cutCRC(b, manifestHeaderSize, manifestMagic, manifestVersion)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if n, want := int64(le.Uint32(b[12:])), int64(len(b)-manifestHeaderSize); le.Uint16(b[10:]) != manifestHeaderSize || n*manifestTableSize != want {
		return nil, fmt.Errorf("%w: header of %d bytes, %d tables in %d bytes", ErrCorrupt, le.Uint16(b[10:]), n, want)
	}
	m := &manifest{
		index: le.Uint64(b[32:]), epoch: le.Uint64(b[40:]),
		lastSeq: le.Uint64(b[48:]), lastGlobal: le.Uint64(b[56:]),
		firstTime: int64(le.Uint64(b[64:])), lastTime: int64(le.Uint64(b[72:])),
		chain: le.Uint32(b[80:]),
	}
	copy(m.instrument[:], b[16:32])
	if m.lastSeq > 0 {
		m.lastRecord = new(record.Record)
		copy(m.lastRecord.Bytes(), b[128:manifestHeaderSize])
	}
	for t := b[manifestHeaderSize:]; len(t) > 0; t = t[manifestTableSize:] {
		m.tables = append(m.tables, tableMeta{
			first: le.Uint64(t), last: le.Uint64(t[8:]), size: int64(le.Uint64(t[16:])),
			minTime: int64(le.Uint64(t[24:])), maxTime: int64(le.Uint64(t[32:])),
			crc: le.Uint32(t[40:]), chain: le.Uint32(t[44:]),
		})
	}
	return m, m.check()
}

// check reports whether the tables follow each other from seq 1 to lastSeq and
// the last record is the one at lastSeq.
func (m *manifest) check() error {
	if err := m.instrument.Check(); err != nil {
		return err
	}
	var last uint64
	var chain uint32
	for i := range m.tables {
		t := &m.tables[i]
		if t.first != last+1 || t.last < t.first || t.size <= 0 {
			return fmt.Errorf("%w: table of seq %d to %d, %d bytes, after seq %d", ErrCorrupt, t.first, t.last, t.size, last)
		}
		last, chain = t.last, t.chain
	}
	if last != m.lastSeq || chain != m.chain {
		return fmt.Errorf("%w: tables end at seq %d, chain %08x; the manifest says %d, %08x", ErrCorrupt, last, chain, m.lastSeq, m.chain)
	}
	if r := m.lastRecord; r != nil && (r.Check() != nil || r.Seq != last || r.Instrument != m.instrument || r.Global != m.lastGlobal || r.Time != m.lastTime) {
		return fmt.Errorf("%w: the copy of the last record is not the one at seq %d", ErrCorrupt, last)
	}
	return nil
}

// readManifest reads the manifest in an instrument's directory.
func readManifest(fs vfs.FS, dir string, sym record.Symbol) (*manifest, error) {
	path := fs.PathJoin(dir, manifestFile)
	b, err := readFile(fs, path, manifestBytesMax)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", path, err)
	}
	if m.instrument != sym {
		return nil, fmt.Errorf("manifest %s: %w: it is of instrument %s", path, ErrCorrupt, m.instrument)
	}
	return m, nil
}
