package core

import (
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
// and live orders, and is meant for comparisons, not for the trading path.
func (e *Exchange) State() State { return e.state(e.published()) }

func (e *Exchange) state(global uint64) State {
	lines := []string{
		fmt.Sprintf("exchange global=%d last_order=%d last_trade=%d day=%d account_seq=%d",
			global, e.lastOrderID, e.lastTradeID, e.day, e.accounts.Seq),
	}
	markets := slices.Clone(e.markets)
	slices.SortFunc(markets, func(a, b *market) int { return strings.Compare(a.terms.Symbol.String(), b.terms.Symbol.String()) })
	for _, m := range markets {
		lines = append(lines, e.instrumentLine(m))
	}
	lines = append(lines, e.accountLines(markets)...)
	for _, m := range markets {
		lines = append(lines, m.orderLines(record.Buy)...)
		lines = append(lines, m.orderLines(record.Sell)...)
	}
	return State{Lines: lines, Global: global}
}

func (e *Exchange) instrumentLine(m *market) string {
	t := &m.terms
	return fmt.Sprintf("instrument %s seq=%d halted=%t last=%d settlement=%d limits=%d…%d width_bp=%d tick=%de-%d tick_value=%d margin_ppm=%d/%d fees=%s:%d/%d/%d max_order=%d position_limit=%d",
		t.Symbol, m.stream.Seq, m.halted, e.marks[m.index], m.settlement, t.LowerLimit, t.UpperLimit, t.PriceLimitBP,
		t.TickSize, t.Decimals, t.TickValue, t.LongMarginPPM, t.ShortMarginPPM,
		t.FeeMode, t.FeeOpen, t.FeeClose, t.FeeCloseToday, t.MaxOrderVolume, t.PositionLimit)
}

func (e *Exchange) accountLines(markets []*market) []string {
	ids := e.AccountIDs()
	slices.Sort(ids)
	var lines []string
	for _, id := range ids {
		i, _ := e.ledger.Find(id)
		a := e.ledger.Account(i)
		lines = append(lines, fmt.Sprintf("account %d balance=%d frozen=%d+%d margin=%d available=%d",
			id, a.Balance, a.FrozenMargin, a.FrozenFee, a.Margin, a.Available()))
		for _, m := range markets {
			p := *e.ledger.Position(m.index, i)
			p.Bids.Best, p.Asks.Best = 0, 0 // a bound, not a state
			if p != (account.Position{}) {
				lines = append(lines, positionLine(id, m.terms.Symbol, &p))
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

func (m *market) orderLines(side record.Side) []string {
	lines := make([]string, 0, m.book.Orders(side))
	m.book.Each(side, func(o *order.Order) bool {
		lines = append(lines, fmt.Sprintf("order %s %s %d id=%d client=%d account=%d %s %s %s price=%d volume=%d remaining=%d frozen=%d+%d",
			m.terms.Symbol, side, len(lines), o.ID, o.ClientOrderID, o.Account, o.Offset, o.Kind, o.TimeInForce,
			o.Price, o.Volume, o.Remaining, o.FrozenMargin, o.FrozenFee))
		return true
	})
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
