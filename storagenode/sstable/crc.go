package sstable

import (
	"hash/crc32"

	"github.com/countinghouse/countinghouse/record"
)

// Checksums of neighbouring byte strings can be joined without a look at the
// bytes: appending n bytes multiplies the checksum before them, taken as a
// polynomial over GF(2), by x^(8n) modulo the CRC's polynomial.

// crcPowers[k] is x^(2^k) modulo the polynomial, in CRC32C's reflected order.
var crcPowers = func() (p [64]uint32) {
	p[0] = 1 << 30 // x
	for k := 1; k < len(p); k++ {
		p[k] = crcMultiply(p[k-1], p[k-1])
	}
	return p
}()

// crcMultiply returns a × b modulo the polynomial. The top bit is x^0.
func crcMultiply(a, b uint32) uint32 {
	var product uint32
	for ; a != 0; a <<= 1 {
		product ^= b & uint32(int32(a)>>31)
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}

// CombineCRC returns the CRC32C of the bytes of a followed by the bytes of b,
// which are lenB many, from the CRC32Cs of the two.
func CombineCRC(a, b uint32, lenB int64) uint32 {
	return shiftCRC(a, lenB) ^ b
}

// shiftCRC returns what a contributes to a checksum when n bytes follow it.
func shiftCRC(a uint32, n int64) uint32 {
	for k := 3; n != 0; k, n = k+1, n>>1 { // a byte is x^8 = x^(2^3)
		if n&1 != 0 {
			a = crcMultiply(a, crcPowers[k])
		}
	}
	return a
}

// ChainBatch returns the chain, the CRC32C of all record bytes of a stream, as
// it is after b, from the chain before b. It derives it from the batch's own
// checksum without reading the records, so the chain states what the writer
// sent: records that change in memory later no longer fit it.
func ChainBatch(chain uint32, b *record.Batch) uint32 {
	head := crc32.Update(0, record.Castagnoli, b.Bytes[:44])
	head = crc32.Update(head, record.Castagnoli, b.Bytes[48:record.BatchHeaderSize])
	return shiftCRC(chain^head, int64(len(b.Records))*record.Size) ^ b.CRC
}
