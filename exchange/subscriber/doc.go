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
//
// # In another process than the exchange
//
// A Process carries the records of an exchange that runs in another process and
// shares the outbox's directory. Who may write what follows from three things:
//
//   - The exchange fences. At its start it opens all streams with an incarnation
//     above all before, as one with a subscriber of its own does, and only then
//     writes a Grant: the incarnation, and the opening of the outbox for which it
//     holds. A Process never takes an incarnation by itself, so that the one of an
//     exchange that was replaced can not take the streams back.
//   - The Process takes a term of the incarnation. The session's upper 16 bits are
//     the term. A lane that begins opens all streams of its shard, in a term above
//     what it is refused with; a lane of an earlier Process is refused from then on
//     and ends with ErrSuperseded. Only then it delivers. Terms need no file.
//   - A lock in the outbox's directory, see outbox.HoldSubscriber, keeps a second
//     Process, or an exchange with a subscriber of its own, out to begin with.
//
// A grant is void once a writer has opened the outbox again, or the machine went
// down. The Process then lets go of its cursors and waits for the next one; after
// another start of the exchange it goes on by itself. What it delivers in between
// under the earlier grant is of the same history, and ends with the fence.
//
// The exchange has a Follower in the place of a Subscriber: it learns from the
// lanes' cursors what is durable, and from a report why a lane stopped for good.
package subscriber

import "errors"

// Why a lane stops for good; test with errors.Is. Every other error is retried.
var (
	// ErrFenced means that an exchange with a higher incarnation writes the
	// shard's streams: this process is the old one and must end.
	ErrFenced = errors.New("fenced by a later writer")
	// ErrSuperseded means that another process that carries the records of the same
	// outbox has begun after this one, which must end.
	ErrSuperseded = errors.New("superseded by a later process")
	// ErrDiverged means that the shard holds other bytes than the outbox under
	// the same number: the outbox or the shard belongs to another history.
	ErrDiverged = errors.New("outbox and stores diverge")
	// ErrMissing means that the outbox no longer has records that the shard
	// still lacks.
	ErrMissing = errors.New("records are missing")
	// ErrOutbox means that the outbox can not be read, or that a record in it is
	// not what the exchange wrote there; what stands before it is delivered.
	ErrOutbox = errors.New("outbox can not be read")
	// ErrSessions means that the session numbers of this incarnation, or of this
	// term of it, are used up; a restart of the exchange raises the incarnation.
	ErrSessions = errors.New("no session numbers left")
)

// ErrUnowned means that records wait for an instrument that no shard owns. They
// stay in the outbox until the shard map names an owner.
var ErrUnowned = errors.New("no shard owns the instrument")

// ErrStopped means that the subscriber was stopped before what was waited for.
var ErrStopped = errors.New("subscriber stopped")
