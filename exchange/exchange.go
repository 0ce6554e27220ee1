package exchange

import (
	"context"
	"errors"
	"time"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// What callers handle; test with errors.Is. Errors name what differs and what
// can be done. An outbox in use is outbox.ErrLocked, one of another cluster is
// outbox.ErrWrongCluster.
var (
	// ErrDiverged means that outbox, stores and state file do not tell the same
	// history. Nothing was changed.
	ErrDiverged = errors.New("outbox and stores diverge")
	// ErrStores means that shards did not answer, without which no start is
	// possible.
	ErrStores = errors.New("the stores cannot be read")
	// ErrTerms means that an instrument's tick, or what a tick is worth, is not
	// what it was listed with.
	ErrTerms = errors.New("instrument was listed with other terms")
	// ErrClosed means that the exchange was closed.
	ErrClosed = errors.New("exchange is closed")
)

// Exchange is a running exchange. Its methods may be called from anywhere.
type Exchange struct {
	config   Config
	outbox   *outbox.Writer
	client   *client.Client
	router   *core.Router
	recovery Recovery

	failed chan struct{} // closed when the exchange can not go on
	cause  error         // valid once failed is closed
}

// Open starts an exchange: it recovers, see the package's documentation, and
// takes orders when it returns. ctx bounds the recovery only.
func Open(ctx context.Context, config Config) (*Exchange, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	return nil, errors.ErrUnsupported
}

// Router takes requests from any number of goroutines: orders, accounts, money,
// control and queries. It must not be closed; Close does that. Once the exchange
// stops it answers with risk.Unavailable.
func (x *Exchange) Router() *core.Router { return x.router }

// Client returns the client of the storage nodes, for reading.
func (x *Exchange) Client() *client.Client { return x.client }

// Config returns the configuration with its defaults filled in.
func (x *Exchange) Config() Config { return x.config }

// Recovery returns what Open found and did.
func (x *Exchange) Recovery() Recovery { return x.recovery }

// WaitDurable returns when the record of that number in the instrument's stream
// is on disk on a quorum of its shard, with ctx's error before that, or with the
// exchange's when it has ended.
func (x *Exchange) WaitDurable(ctx context.Context, instrument record.Symbol, seq uint64) error {
	return errors.ErrUnsupported
}

// WaitDrained returns when everything that is published at the time of the call
// is on disk on a quorum of its shard.
func (x *Exchange) WaitDrained(ctx context.Context) error { return errors.ErrUnsupported }

// State returns books, accounts, positions and numbering. Orders wait meanwhile.
// It returns ErrClosed once the exchange has ended.
func (x *Exchange) State() (core.State, error) {
	s, ok := x.router.State()
	if !ok {
		return core.State{}, ErrClosed
	}
	return s, nil
}

// Failed is closed when the exchange can not go on, such as when another one has
// taken over its streams or a store diverges; Err then says why, and the caller
// calls Close. It takes no orders from then on.
func (x *Exchange) Failed() <-chan struct{} { return x.failed }

// Err returns why Failed was closed, nil if it was not.
func (x *Exchange) Err() error {
	select {
	case <-x.failed:
		return x.cause
	default:
		return nil
	}
}

// Close stops taking requests, waits up to Config.CloseWait for the delivery of
// what the outbox holds, notes the state, and ends. It returns the last state
// and whether everything was delivered.
func (x *Exchange) Close(ctx context.Context) (Closed, error) { return Closed{}, errors.ErrUnsupported }

// Closed says how an exchange ended.
type Closed struct {
	State   core.State
	Global  uint64 // of the last record
	Drained bool   // everything is on disk on a quorum; else it waits in the outbox
}

// Recovery says how an exchange got its state.
type Recovery struct {
	Outbox       outbox.RecoveryReport
	FromOutbox   bool   // the stores were not read
	Drained      bool   // nothing waited for delivery when the replay began
	Records      uint64 // replayed
	Global       uint64 // of the last record, after new terms were recorded
	Delivered    uint64 // records delivered before the replay
	StateChecked bool   // the replay passed the state file's state
	Listed       int    // instruments listed, or listed with changed terms
	DrainTook    time.Duration
	ReplayTook   time.Duration
}

// Stats are the exchange's numbers at one time.
type Stats struct {
	Core   core.Totals
	Outbox outbox.Stats
	// Delivered is the highest global up to which everything is durable on a
	// quorum.
	Delivered uint64
	// Subscriber subscriber.Stats
}

// Stats reads the numbers; it is meant for a metrics scrape or a progress line.
func (x *Exchange) Stats() Stats { return Stats{} }
