// Package outbox keeps the exchange's notifications between the trading path
// and the storage nodes: memory-mapped segment files with one writer and any
// number of readers, in this process or in another one.
//
// The writer fills records in place and publishes a whole transaction with one
// atomic store; it never enters the kernel. What is published survives the end
// of the process at any instant. It usually survives the machine too, but that
// is not promised: nothing is synced on the way. DESIGN.md explains both.
//
// A directory holds
//
//	LOCK                 flock'ed by the writer; its pid in decimal
//	LOCK.cursors         flock'ed while cursors or segments come and go
//	LOCK.subscriber      flock'ed by who carries the records; its pid in decimal
//	control              one page: identity, incarnation, published counter
//	segment-<number>     records; number counts from 0, 20 decimal digits
//	cursor-<name>        one page per reader: everything up to here is done
//	spare-<number>       a segment being made or recycled; of no value
//
// All integers are little-endian.
//
// # control, 4096 bytes
//
//	offset size field
//	     0  256 header, copy A; the valid copy of the higher generation counts
//	   512  256 header, copy B
//	  1024    8 published: the last global that readers may see
//
// # header, 256 bytes
//
//	offset size field
//	     0    8 magic "CHOUTBX1"
//	     8    4 version 1
//	    12    4 records per segment
//	    16    8 generation of this copy, from 1
//	    24    8 incarnation: how many times a writer opened the outbox
//	    32    8 base: the global before the first slot of segment 0
//	    40   40 boot id of the machine when it was last opened, zero-padded
//	    80   64 cluster, zero-padded
//	   252    4 CRC32C of bytes 0–251
//
// # segment, 4096 + 136 × records bytes
//
//	offset  size field
//	     0     8 magic "CHOUTSEG"
//	     8     4 version 1
//	    12     4 records
//	    16     8 number
//	    24     8 base
//	    32     4 CRC32C of bytes 0–31
//	  4096 128×n records; slot i holds global base + number×n + i + 1
//	   ...   8×n check word of each record, see checkWord
//
// # cursor, 4096 bytes
//
//	offset size field
//	     0    8 magic "CHOUTCUR"
//	     8    4 version 1
//	    64    8 value A, and at 72 its check word
//	   128    8 value B, and at 136 its check word
//
// The two values are written in turn, so that one of them is whole at any
// instant; the higher whole one counts.
package outbox

import "errors"

// What callers handle; test with errors.Is. Every error names the file.
var (
	// ErrLocked means that another writer has the outbox open.
	ErrLocked = errors.New("another process writes here")
	// ErrSubscribed means that another process carries the outbox's records.
	ErrSubscribed = errors.New("another process carries the records")
	// ErrWrongCluster means that the outbox belongs to another exchange.
	ErrWrongCluster = errors.New("belongs to another cluster")
	// ErrDamaged means that a file is not what an outbox wrote.
	ErrDamaged = errors.New("damaged")
	// ErrVersion means that a file was written by a later version.
	ErrVersion = errors.New("unknown version")
	// ErrCursorInUse means that a live reader holds the cursor.
	ErrCursorInUse = errors.New("cursor is in use")
	// ErrNotFound means that there is no outbox or cursor of that name.
	ErrNotFound = errors.New("not found")
	// ErrClosed means that the Reader or Writer was closed before.
	ErrClosed = errors.New("closed")
)
