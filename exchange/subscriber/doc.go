// Package subscriber carries the outbox's records to the shards that own them,
// exactly once.
//
// Each shard has a lane: a goroutine with a durable cursor of its own. It reads
// the outbox in order, gathers the records of its shard's instruments into one
// batch per instrument, and sends a batch when it is full, when its first record
// has waited for the linger time, or at once when nothing is on its way to the
// shard. Up to a window of batches are on their way at a time.
//
// After any error the lane ends its session: it forgets everything that was
// gathered or sent, goes back to its cursor, opens each instrument's stream with
// the next epoch when it meets the instrument again, and passes over what the
// shard then says it holds. An epoch is the outbox's incarnation in the upper 32
// bits and the session in the lower.
//
// The cursor is the highest global up to which every record of the shard is
// durable on a quorum. Memory is bounded by (instruments + window) × batch size;
// while a shard is away, its records stay in the outbox.
package subscriber

import "errors"

// Why a lane stops for good; test with errors.Is. Every other error is retried.
var (
	// ErrFenced means that an exchange with a higher incarnation writes the
	// shard's streams: this process is the old one and must end.
	ErrFenced = errors.New("fenced by a later writer")
	// ErrDiverged means that the shard holds other bytes than the outbox under
	// the same number: the outbox or the shard belongs to another history.
	ErrDiverged = errors.New("outbox and stores diverge")
	// ErrMissing means that the outbox no longer has records that the shard
	// still lacks.
	ErrMissing = errors.New("records are missing")
	// ErrOutbox means that the outbox can not be read, or that a record in it is
	// not what the exchange wrote there; what stands before it is delivered.
	ErrOutbox = errors.New("outbox can not be read")
	// ErrSessions means that the session numbers of this incarnation are used
	// up; a restart of the exchange raises the incarnation.
	ErrSessions = errors.New("no session numbers left")
)

// ErrUnowned means that records wait for an instrument that no shard owns. They
// stay in the outbox until the shard map names an owner.
var ErrUnowned = errors.New("no shard owns the instrument")

// ErrStopped means that the subscriber was stopped before what was waited for.
var ErrStopped = errors.New("subscriber stopped")
