// Package sstable is the sorted table: an immutable file of one instrument's
// records, consecutive in seq, in checksummed blocks, with an index on time and
// Bloom filters on order, trade and account ids. Because records have a fixed
// size and their seqs no gaps, the index on seq is arithmetic.
//
// A table is written under a temporary name, synced and renamed, so that a file
// with a table's name is whole. It is read through a memory mapping where the
// file system has file descriptors, and by ReadAt elsewhere. No byte is used
// before its checksum was found right; each checksum is checked once. Before it is first
// touched a block is asked for, so that the kernel reads that much and no more; who
// reads on has it read ahead, see Table.BlockAhead.
//
// # File
//
//	offset                size  content
//	     0         128 × count  records, seq ascending without a gap
//	     …     filter length    Bloom filters, see below
//	     …      index length    index
//	   end−256           256    footer
//
// A block is 512 records, 64 KiB, the last one fewer; blocks have no framing, so
// all records of a table lie together.
//
// # Index
//
//	size  content
//	  24  for each block: CRC32C u32, record count u32, least time i64, greatest time i64
//	  16  for each filter group: offset in the filter section u64, rows u32, bytes per row u32
//	   4  for each 4096-byte page of the filter section: CRC32C u32
//
// # Filters
//
// Each block has a Bloom filter of 8 probes and about 20 bits for each distinct
// id, which lets one block in several thousand through in error. The filters of
// 512 blocks, a group, have the same number of bits and are stored crosswise:
// row r holds bit r of every block's filter, one bit a block, least significant
// bit first. A lookup ANDs 8 rows, 8 cache lines, and has the group's candidate
// blocks.
//
// The hash of an id is x = (value + kind × 0x9e3779b97f4a7c15), then
// x = (x ⊕ x≫30) × 0xbf58476d1ce4e5b9, x = (x ⊕ x≫27) × 0x94d049bb133111eb,
// x = x ⊕ x≫31. Probe i is ((hi32(x) + i × (lo32(x) | 1)) mod 2³²) × rows ≫ 32.
//
// # Footer, 256 bytes
//
//	offset size field
//	     0    8 magic            "CHTABLE1"
//	     8    2 version          1
//	    10    2 footer size      256
//	    12    2 record size      128
//	    14    2 block records    512
//	    16   16 instrument       ASCII, zero-padded
//	    32    8 first seq
//	    40    8 last seq
//	    48    8 first time       Unix nanoseconds, of the first record
//	    56    8 last time        of the last record
//	    64    8 least time
//	    72    8 greatest time
//	    80    8 last global      of the last record
//	    88    4 chain before     CRC32C of the stream's record bytes before the table
//	    92    4 chain after      the same with the table
//	    96    4 blocks
//	   100    4 filter groups
//	   104    4 filter pages
//	   108    4 flags            bit 0: no record is older than the one before it
//	   112    8 filter offset
//	   120    8 filter length
//	   128    8 index offset
//	   136    8 index length
//	   144    4 index CRC32C
//	   148    4 data CRC32C      of all records
//	   152   48 id ranges        least and greatest order, trade and account id, u64 each; 0, 0 for none
//	   200   52 reserved         zero
//	   252    4 footer CRC32C    of bytes 0–251
//
// All numbers are little-endian.
package sstable
