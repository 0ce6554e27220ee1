package main

import (
	"context"
	"encoding/json"
	"log"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/countinghouse/countinghouse/exchange/exchangepb"
	"github.com/countinghouse/countinghouse/identity"
)

const (
	// workers is the number of requests that are made at a time: one that waits for
	// an exchange that is away does not hold up those behind it for long.
	workers = 8
	// restingMax is the number of orders that rest before the oldest is cancelled.
	restingMax = 200
	// accountCash is what an account starts with, in minor units.
	accountCash = 1_000_000_000_000_000
	// reference of a deposit: the exchange takes one of a number once.
	reference = 1
	retryWait = 200 * time.Millisecond
)

// placed is what the exchange has said of an order.
type placed struct {
	instrument string
	order      uint64
	seq        uint64
	global     uint64
	canceled   bool // and that it was cancelled
}

type resting struct {
	instrument     string
	account, order uint64
	client         uint64
}

// trader is safe for concurrent use.
type trader struct {
	c     config
	conn  *grpc.ClientConn // as a trader
	money *grpc.ClientConn // as an operator
	// reader is the certificate for the shards, nil without TLS.
	reader *identity.Source
	entry  pb.OrderEntryClient
	steps  *steps

	first  uint64 // client order ids of this trader are above it
	paused atomic.Bool
	client atomic.Uint64 // the last client order id

	mu       sync.Mutex
	placed   map[uint64]placed // by client order id: accepted
	unknown  map[uint64]bool   // sent, and no answer came
	rejected map[uint64]string // refused, with the reason
	resting  []resting
	inFlight int
	idle     *sync.Cond
	view     *view // of the shards; nil before they are known
}

// newTrader returns a trader whose certificates are followed until ctx ends.
func newTrader(ctx context.Context, c config) (*trader, error) {
	t := &trader{c: c, steps: newSteps(), placed: map[uint64]placed{}, unknown: map[uint64]bool{}, rejected: map[uint64]string{}}
	var err error
	if t.conn, err = c.dial(ctx, "trader"); err != nil {
		return nil, err
	}
	if t.money, err = c.dial(ctx, "operator"); err != nil {
		return nil, err
	}
	if t.reader, err = c.certificate(ctx, "reader"); err != nil {
		return nil, err
	}
	t.entry = pb.NewOrderEntryClient(t.conn)
	t.idle = sync.NewCond(&t.mu)
	// Client order ids of another life of this program are other ones.
	t.first = uint64(time.Now().Unix()) << 24
	t.client.Store(t.first)
	return t, nil
}

// certificate returns the source of a role's certificate, nil without TLS.
func (c config) certificate(ctx context.Context, role string) (*identity.Source, error) {
	if c.tls == "" {
		return nil, nil
	}
	s, err := identity.Open(filepath.Join(c.tls, role), identity.Options{Logger: slog.Default()})
	if err != nil {
		return nil, err
	}
	go s.Run(ctx)
	return s, nil
}

// dial returns a connection to the exchange in a role.
func (c config) dial(ctx context.Context, role string) (*grpc.ClientConn, error) {
	source, err := c.certificate(ctx, role)
	if err != nil {
		return nil, err
	}
	transport := insecure.NewCredentials()
	if source != nil {
		transport = source.Client(identity.Identity{Cluster: c.cluster, Role: identity.Exchange})
	}
	return grpc.NewClient("dns:///"+c.exchange, grpc.WithTransportCredentials(transport),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 500 * time.Millisecond}}))
}

func (t *trader) close() {
	_, _ = t.conn.Close(), t.money.Close() // nothing is written through them any more
	if t.view != nil {
		t.view.stop()
	}
}

// pause stops trading and waits for the answers that are due, or lets it go on.
func (t *trader) pause(p bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused.Store(p)
	for p && t.inFlight > 0 {
		t.idle.Wait()
	}
}

// begin counts a request as one that pause waits for, from before a worker has it,
// unless trading is paused.
func (t *trader) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused.Load() {
		return false
	}
	t.inFlight++
	return true
}

func (t *trader) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inFlight--
	t.idle.Broadcast()
}

// trade opens the accounts, and then makes requests until ctx ends. A request is
// measured from the instant at which it was due, so that one that waits behind
// another counts with its wait.
func (t *trader) trade(ctx context.Context) {
	if !t.open(ctx) {
		return
	}
	due := make(chan time.Time)
	var wg sync.WaitGroup
	for i := range workers {
		random := rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano())))
		wg.Go(func() {
			for at := range due {
				t.request(ctx, random, at)
			}
		})
	}
	t.pace(ctx, due)
	close(due)
	wg.Wait()
}

func (t *trader) pace(ctx context.Context, due chan<- time.Time) {
	every := time.Duration(float64(time.Second) / t.c.rate)
	next := time.Now()
	for ctx.Err() == nil {
		time.Sleep(time.Until(next))
		if !t.begin() {
			time.Sleep(10 * time.Millisecond)
			next = time.Now()
			continue
		}
		select {
		case due <- next:
		case <-ctx.Done():
			t.end()
			return
		}
		next = next.Add(every)
		// After the exchange was away, what was due meanwhile is not made up for.
		if behind := time.Since(next); behind > t.c.timeout {
			t.steps.skipped(uint64(behind / every))
			next = time.Now()
		}
	}
}

// open opens the accounts, again and again until the exchange has them.
func (t *trader) open(ctx context.Context) bool {
	accounts := pb.NewAccountsClient(t.money)
	for n := uint64(1); n <= t.c.accounts; {
		call, cancel := context.WithTimeout(ctx, t.c.timeout)
		_, err := accounts.Account(call, &pb.AccountRequest{Account: n})
		if err != nil {
			if _, err = accounts.OpenAccount(call, &pb.OpenAccountRequest{Account: n}); err == nil {
				_, err = accounts.Deposit(call, &pb.CashRequest{Account: n, Amount: accountCash, Reference: reference})
			}
		}
		cancel()
		if err == nil {
			n++
			continue
		}
		log.Printf("open account %d: %v", n, err)
		select {
		case <-time.After(retryWait):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// request makes one request: it cancels an order where many rest, or submits one.
func (t *trader) request(ctx context.Context, random *rand.Rand, due time.Time) {
	defer t.end()
	t.mu.Lock()
	var oldest *resting
	if len(t.resting) > restingMax {
		oldest = &t.resting[0]
		t.resting = t.resting[1:]
	}
	t.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, t.c.timeout)
	defer cancel()
	if oldest != nil {
		t.cancel(call, *oldest, due)
		return
	}
	t.submit(call, random, due)
}

func (t *trader) submit(ctx context.Context, random *rand.Rand, due time.Time) {
	id := t.client.Add(1)
	r := &pb.SubmitRequest{
		Instrument: t.c.instruments[random.IntN(len(t.c.instruments))], Account: 2 + 2*random.Uint64N(t.c.accounts/2),
		ClientOrderId: id, Side: pb.Side_SIDE_BUY, Offset: pb.Offset_OFFSET_OPEN, Price: "3900.0", Volume: 1 + random.Int64N(5),
	}
	if random.IntN(2) == 0 {
		r.Side, r.Account = pb.Side_SIDE_SELL, r.Account-1 // nobody trades with himself
	}
	if random.IntN(2) == 0 { // away from the middle: it rests
		r.Price = map[pb.Side]string{pb.Side_SIDE_BUY: "3800.0", pb.Side_SIDE_SELL: "4000.0"}[r.Side]
	}
	a, err := t.entry.Submit(ctx, r)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		t.unknown[id] = true
		t.steps.lost()
	case a.State == pb.OrderState_ORDER_STATE_REJECTED:
		t.rejected[id] = a.RejectReason
		t.steps.rejected(a.RejectReason)
	default:
		t.steps.answered(time.Since(due))
		t.placed[id] = placed{instrument: r.Instrument, order: a.OrderId, seq: a.Seq, global: a.Global}
		if a.Remaining > 0 {
			t.resting = append(t.resting, resting{r.Instrument, r.Account, a.OrderId, id})
		}
	}
}

func (t *trader) cancel(ctx context.Context, o resting, due time.Time) {
	a, err := t.entry.Cancel(ctx, &pb.CancelRequest{Instrument: o.instrument, Account: o.account, OrderId: o.order})
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		t.steps.lost()
	case a.State == pb.OrderState_ORDER_STATE_REJECTED: // filled meanwhile
		t.steps.answered(time.Since(due))
	default:
		t.steps.answered(time.Since(due))
		p := t.placed[o.client]
		p.canceled, p.global, p.seq = true, max(p.global, a.Global), a.Seq
		t.placed[o.client] = p
	}
}

// state is what a trader has done.
type state struct {
	Accepted int            `json:"accepted"`
	Unknown  int            `json:"unknown"`
	Rejected int            `json:"rejected"`
	Reasons  map[string]int `json:"reject_reasons,omitempty"`
	Resting  int            `json:"resting"`
	Global   uint64         `json:"global"`
	Paused   bool           `json:"paused"`
}

func (t *trader) state() state {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := state{Accepted: len(t.placed), Unknown: len(t.unknown), Rejected: len(t.rejected), Resting: len(t.resting), Paused: t.paused.Load(), Reasons: map[string]int{}}
	for _, p := range t.placed {
		s.Global = max(s.Global, p.global)
	}
	for _, reason := range t.rejected {
		s.Reasons[reason]++
	}
	return s
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		log.Print(err)
	}
}
