package core

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/countinghouse/countinghouse/exchange/account"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/record"
)

// State is everything an exchange is, in one canonical form: equal exchanges
// have equal states, whatever way they came about. It is lines of text, one for
// each instrument, account, position and live order, sorted but for the orders,
// which stand in their priority.
type State struct {
	Lines  []string
	Global uint64 // of the last record that it reflects
}

// State returns the state. It takes time and memory in proportion to accounts
// and live orders, and is meant for comparisons, not for the trading path. What
// it takes most of the time for, the text, needs no exchange: see snapshot.
func (e *Exchange) State() State { return e.snapshot(e.published()).state() }

// snapshot is a copy of all that a State tells: memory, copied in a few large
// pieces, so that whoever holds the exchange holds it for a short time only.
type snapshot struct {
	global, lastOrderID, lastTradeID, accountSeq uint64

	day      uint32
	accounts []account.Account
	markets  []marketCopy // by name
}

type marketCopy struct {
	terms            order.Instrument
	seq              uint64
	halted           bool
	last, settlement int64
	positions        []account.Position // by account, as snapshot.accounts
	bids, asks       []order.Order      // by priority
}

func (e *Exchange) snapshot(global uint64) *snapshot {
	s := &snapshot{
		global: global, lastOrderID: e.lastOrderID, lastTradeID: e.lastTradeID, accountSeq: e.accounts.Seq,
		day: e.day, accounts: e.ledger.Accounts(), markets: make([]marketCopy, 0, len(e.markets)),
	}
	for _, m := range e.markets {
		s.markets = append(s.markets, marketCopy{
			terms: m.terms, seq: m.stream.Seq, halted: m.halted, last: e.marks[m.index], settlement: m.settlement,
			positions: e.ledger.Positions(m.index), bids: m.copyOrders(record.Buy), asks: m.copyOrders(record.Sell),
		})
	}
	return s
}

func (m *market) copyOrders(side record.Side) []order.Order {
	orders := make([]order.Order, 0, m.book.Orders(side))
	m.book.Each(side, func(o *order.Order) bool {
		orders = append(orders, *o)
		return true
	})
	return orders
}

func (s *snapshot) state() State {
	lines := []string{
		fmt.Sprintf("exchange global=%d last_order=%d last_trade=%d day=%d account_seq=%d",
			s.global, s.lastOrderID, s.lastTradeID, s.day, s.accountSeq),
	}
	slices.SortFunc(s.markets, func(a, b marketCopy) int { return strings.Compare(a.terms.Symbol.String(), b.terms.Symbol.String()) })
	for i := range s.markets {
		lines = append(lines, s.markets[i].line())
	}
	lines = s.appendAccounts(lines)
	for i := range s.markets {
		lines = s.markets[i].appendOrders(lines, record.Buy, s.markets[i].bids)
		lines = s.markets[i].appendOrders(lines, record.Sell, s.markets[i].asks)
	}
	return State{Lines: lines, Global: s.global}
}

func (m *marketCopy) line() string {
	t := &m.terms
	return fmt.Sprintf("instrument %s seq=%d halted=%t last=%d settlement=%d limits=%d…%d width_bp=%d tick=%de-%d tick_value=%d margin_ppm=%d/%d fees=%s:%d/%d/%d max_order=%d position_limit=%d",
		t.Symbol, m.seq, m.halted, m.last, m.settlement, t.LowerLimit, t.UpperLimit, t.PriceLimitBP,
		t.TickSize, t.Decimals, t.TickValue, t.LongMarginPPM, t.ShortMarginPPM,
		t.FeeMode, t.FeeOpen, t.FeeClose, t.FeeCloseToday, t.MaxOrderVolume, t.PositionLimit)
}

// appendAccounts appends the accounts by their ids, each with its positions.
func (s *snapshot) appendAccounts(lines []string) []string {
	byID := make([]int, len(s.accounts))
	for i := range byID {
		byID[i] = i
	}
	slices.SortFunc(byID, func(a, b int) int { return cmp.Compare(s.accounts[a].ID, s.accounts[b].ID) })
	for _, i := range byID {
		a := &s.accounts[i]
		lines = append(lines, fmt.Sprintf("account %d balance=%d frozen=%d+%d margin=%d available=%d",
			a.ID, a.Balance, a.FrozenMargin, a.FrozenFee, a.Margin, a.Available()))
		for n := range s.markets {
			p := &s.markets[n].positions[i]
			p.Bids.Best, p.Asks.Best = 0, 0 // a bound, not a state
			if *p != (account.Position{}) {
				lines = append(lines, positionLine(a.ID, s.markets[n].terms.Symbol, p))
			}
		}
	}
	return lines
}

func positionLine(id uint64, s record.Symbol, p *account.Position) string {
	return fmt.Sprintf("position %d %s long=%s short=%s realised=%d fees=%d resting=%d/%d",
		id, s, holdingText(&p.Long), holdingText(&p.Short), p.Realised, p.Fees, p.Bids.Orders, p.Asks.Orders)
}

func holdingText(h *account.Holding) string {
	return fmt.Sprintf("[today=%d@%d/%d history=%d@%d/%d margin=%d opening=%d]",
		h.Today.Volume, h.Today.Cost, h.Today.Frozen, h.History.Volume, h.History.Cost, h.History.Frozen, h.Margin, h.Opening)
}

func (m *marketCopy) appendOrders(lines []string, side record.Side, orders []order.Order) []string {
	for i := range orders {
		o := &orders[i]
		lines = append(lines, fmt.Sprintf("order %s %s %d id=%d client=%d account=%d %s %s %s price=%d volume=%d remaining=%d frozen=%d+%d",
			m.terms.Symbol, side, i, o.ID, o.ClientOrderID, o.Account, o.Offset, o.Kind, o.TimeInForce,
			o.Price, o.Volume, o.Remaining, o.FrozenMargin, o.FrozenFee))
	}
	return lines
}

// Hash returns the SHA-256 of the state in hexadecimal.
func (s State) Hash() string {
	h := sha256.New()
	for _, line := range s.Lines {
		h.Write([]byte(line))
		h.Write([]byte{'\n'})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// StateHash returns the hash of the exchange's state.
func (e *Exchange) StateHash() string { return e.State().Hash() }

// diffLinesMax bounds what Diff returns.
const diffLinesMax = 50

// Diff returns the lines in which two states differ, "-" before those of s and
// "+" before those of other; nil when they are equal. Lines are matched by what
// they are about; at most 50 are returned, and one that says how many more.
func (s State) Diff(other State) []string {
	theirs := make(map[string]string, len(other.Lines))
	for _, line := range other.Lines {
		theirs[subject(line)] = line
	}
	var diff []string
	for _, line := range s.Lines {
		key := subject(line)
		if their, ok := theirs[key]; !ok {
			diff = append(diff, "- "+line)
		} else if their != line {
			diff = append(diff, "- "+line, "+ "+their)
		}
		delete(theirs, key)
	}
	for _, line := range other.Lines {
		if _, left := theirs[subject(line)]; left {
			diff = append(diff, "+ "+line)
		}
	}
	if extra := len(diff) - diffLinesMax; extra > 0 {
		diff = append(diff[:diffLinesMax], fmt.Sprintf("… and %d more lines", extra))
	}
	return diff
}

// subjectWords is the number of words that say what a line is about.
var subjectWords = map[string]int{"exchange": 1, "instrument": 2, "account": 2, "position": 3, "order": 4}

func subject(line string) string {
	kind, _, _ := strings.Cut(line, " ")
	end := 0
	for range subjectWords[kind] {
		next := strings.IndexByte(line[end:], ' ')
		if next < 0 {
			return line
		}
		end += next + 1
	}
	return line[:end]
}
