// Package record defines the fixed layout of what Countinghouse keeps: the
// 128-byte record, one per notification, and the batch that carries records of
// one instrument from the exchange to a storage node.
//
// Everything is little-endian and made of integers: prices in ticks, money in
// the instrument's minor unit, time in nanoseconds since the Unix epoch (UTC).
// A record in memory has the layout of a record on disk, so reading is a bounds
// check, a checksum and a cast. Hosts of the other byte order do not compile.
//
// # Record, 128 bytes
//
//	offset size field
//	     0    1 version     1
//	     1    1 type        see Type
//	     2    2 flags       see Flags
//	     4    4 reserved    zero
//	     8    8 seq         position in the instrument's stream, from 1
//	    16    8 global      position in the exchange's whole output, from 1
//	    24    8 time        Unix nanoseconds
//	    32   16 instrument  ASCII, zero-padded
//	    48   80 body        by type; the structs of this package are its byte tables
//
// # Batch, 64 bytes and count records
//
//	offset size field
//	     0    4 magic       "CHB1"
//	     4    2 version     1
//	     6    2 header size 64
//	     8   16 instrument  ASCII, zero-padded
//	    24    8 epoch       writer's epoch, from 1
//	    32    8 first seq   seq of the first record
//	    40    4 count       1 … MaxBatchRecords
//	    44    4 crc         CRC32C (Castagnoli) of bytes 0–43, 48–63 and the records
//	    48   16 reserved    zero
//	    64  128 × count     records, seq ascending without a gap
package record
