package wal

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/hashicorp/raft"
)

// A frame is a header of frameHeaderSize bytes, the entry's extensions, its
// data, and zeroes up to the next multiple of frameAlign. All numbers are
// little-endian.
//
//	offset size
//	     0    4  CRC32C of header bytes 4 to 47, started from the salt's low half
//	     4    4  CRC32C of the bytes after the header, started from its high half
//	     8    4  data length
//	    12    4  extensions length
//	    16    8  index; for frameLogStart the first index of the log
//	    24    8  term
//	    32    8  appended-at, Unix nanoseconds; 0 for none
//	    40    4  group: 1, 2, 3 … within the segment, one for each write
//	    44    1  kind: 1 entry, 2 log start
//	    45    1  raft.LogType
//	    46    1  flags: bit 0 is set in the last frame of a group
//	    47    1  zero
const (
	frameHeaderSize = 48
	frameAlign      = 8
)

type frameKind uint8

const (
	frameEntry    frameKind = 1
	frameLogStart frameKind = 2 // entries below the index were deleted
)

const flagGroupEnd = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHeader is a frame's header without its checksums.
type frameHeader struct {
	dataLen, extLen uint32
	index, term     uint64
	appendedAt      int64
	group           uint32
	kind            frameKind
	logType         raft.LogType
	flags           uint8
}

// frameSize returns the bytes that a frame takes in a segment.
func frameSize(extLen, dataLen int64) int64 {
	return align(frameHeaderSize + extLen + dataLen)
}

func align(n int64) int64 { return (n + frameAlign - 1) &^ (frameAlign - 1) }

func (h *frameHeader) size() int64 { return frameSize(int64(h.extLen), int64(h.dataLen)) }

// appendFrame appends a frame to dst, whose length must be a multiple of
// frameAlign.
func appendFrame(dst []byte, h *frameHeader, ext, data []byte, salt uint64) []byte {
	start := len(dst)
	var b [frameHeaderSize]byte
	dst = append(dst, b[:]...)
	dst = append(dst, ext...)
	dst = append(dst, data...)
	for len(dst)%frameAlign != 0 {
		dst = append(dst, 0)
	}
	f := dst[start:]
	binary.LittleEndian.PutUint32(f[4:], bodyCRC(f[frameHeaderSize:], salt))
	binary.LittleEndian.PutUint32(f[8:], h.dataLen)
	binary.LittleEndian.PutUint32(f[12:], h.extLen)
	binary.LittleEndian.PutUint64(f[16:], h.index)
	binary.LittleEndian.PutUint64(f[24:], h.term)
	binary.LittleEndian.PutUint64(f[32:], uint64(h.appendedAt))
	binary.LittleEndian.PutUint32(f[40:], h.group)
	f[44], f[45], f[46], f[47] = byte(h.kind), byte(h.logType), h.flags, 0
	binary.LittleEndian.PutUint32(f[0:], headCRC(f, salt))
	return dst
}

func headCRC(f []byte, salt uint64) uint32 {
	return crc32.Update(uint32(salt), castagnoli, f[4:frameHeaderSize])
}

func bodyCRC(body []byte, salt uint64) uint32 {
	return crc32.Update(uint32(salt>>32), castagnoli, body)
}

// parseHeader reads the header at the start of b. It reports false unless the
// header carries the salt's checksum and the whole frame lies within b.
func parseHeader(b []byte, salt uint64) (h frameHeader, ok bool) {
	if len(b) < frameHeaderSize || !mayBeHeader(b) {
		return h, false
	}
	h.kind = frameKind(b[44])
	h.dataLen = binary.LittleEndian.Uint32(b[8:])
	h.extLen = binary.LittleEndian.Uint32(b[12:])
	if h.size() > int64(len(b)) || binary.LittleEndian.Uint32(b) != headCRC(b, salt) {
		return h, false
	}
	h.index = binary.LittleEndian.Uint64(b[16:])
	h.term = binary.LittleEndian.Uint64(b[24:])
	h.appendedAt = int64(binary.LittleEndian.Uint64(b[32:]))
	h.group = binary.LittleEndian.Uint32(b[40:])
	h.logType = raft.LogType(b[45])
	h.flags = b[46]
	return h, true
}

// mayBeHeader is what of parseHeader's tests costs next to nothing: recovery looks at
// every multiple of frameAlign. b must have frameHeaderSize bytes.
func mayBeHeader(b []byte) bool {
	kind := frameKind(b[44])
	return kind == frameEntry || kind == frameLogStart
}

// bodyOK reports whether what follows the header h at the start of b is what
// was written.
func bodyOK(b []byte, h *frameHeader, salt uint64) bool {
	return binary.LittleEndian.Uint32(b[4:]) == bodyCRC(b[frameHeaderSize:h.size()], salt)
}

// entry fills log from the frame at the start of b. Data and Extensions share
// b's memory.
func (h *frameHeader) entry(b []byte, log *raft.Log) {
	body := b[frameHeaderSize:]
	ext, data := int(h.extLen), int(h.extLen)+int(h.dataLen)
	*log = raft.Log{Index: h.index, Term: h.term, Type: h.logType}
	if h.extLen > 0 {
		log.Extensions = body[:ext:ext]
	}
	if h.dataLen > 0 {
		log.Data = body[ext:data:data]
	}
	if h.appendedAt != 0 {
		log.AppendedAt = time.Unix(0, h.appendedAt)
	}
}

// unixNanos returns t as the frame stores it: 0 for the zero time.
func unixNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
