package core

import (
	"fmt"

	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/record"
)

func (p *Replayer) applyInsert(m *market, b *record.OrderInsert) error {
	i, known := p.e.ledger.Find(b.Account)
	switch {
	case p.hand != nil:
		return fmt.Errorf("order %d comes within the transaction of order %d", b.OrderID, p.hand.ID)
	case !known:
		return fmt.Errorf("account %d is not open", b.Account)
	case b.OrderID <= p.e.lastOrderID:
		return fmt.Errorf("order id %d comes after %d", b.OrderID, p.e.lastOrderID)
	case risk.Form(b.Side, b.Offset, b.Kind, b.TimeInForce) != risk.OK:
		return fmt.Errorf("order %d: %s", b.OrderID, risk.Malformed.Message())
	}
	d := order.Order{
		ID: b.OrderID, ClientOrderID: b.ClientOrderID, Account: b.Account, AccountIndex: i,
		Side: b.Side, Offset: b.Offset, Kind: b.Kind, TimeInForce: b.TimeInForce,
		Price: b.Price, Volume: b.Volume, Remaining: b.Volume,
		FrozenMargin: b.FrozenMargin, FrozenFee: b.FrozenFee,
	}
	if err := p.checkEntry(m, &d, d.Remaining); err != nil {
		return err
	}
	o := m.book.Acquire()
	*o = d
	p.e.lastOrderID = o.ID
	p.take(m, o)
	return nil
}

// checkEntry reports why d, which asks for more lots than it had before, cannot
// have been accepted in this state.
func (p *Replayer) checkEntry(m *market, d *order.Order, more int64) error {
	if r := risk.Terms(&m.terms, d.Remaining, d.Price); r != risk.OK {
		return fmt.Errorf("order %d: %s", d.ID, r.Message())
	}
	if d.FrozenMargin < 0 || d.FrozenFee < 0 || d.FrozenMargin%d.Remaining != 0 || d.FrozenFee%d.Remaining != 0 {
		return fmt.Errorf("order %d: frozen amounts %d and %d are not whole for each of %d lots", d.ID, d.FrozenMargin, d.FrozenFee, d.Remaining)
	}
	pos := p.e.ledger.Position(m.index, d.AccountIndex)
	if r := p.e.holdings(m, pos, d, more); r != risk.OK {
		return fmt.Errorf("order %d: %s", d.ID, r.Message())
	}
	return nil
}

// take freezes o and keeps it in hand until its transaction ends.
func (p *Replayer) take(m *market, o *order.Order) {
	p.e.ledger.Freeze(m.index, o)
	p.hand, p.handMarket = o, m
}

// settleHand rests or lets go of the order in hand as its transaction ends.
func (p *Replayer) settleHand() error {
	o, m := p.hand, p.handMarket
	p.hand, p.handMarket = nil, nil
	switch {
	case o == nil:
	case o.Remaining == 0:
		m.book.Release(o)
	case o.TimeInForce != record.GFD:
		return fmt.Errorf("order %d cannot rest, but its transaction ends with %d lots left", o.ID, o.Remaining)
	case m.crosses(o):
		return fmt.Errorf("order %d would rest at %d across the other side", o.ID, o.Price)
	default:
		p.e.rest(m, o)
	}
	return nil
}

// live returns the order in hand or in the book.
func (p *Replayer) live(m *market, id, account uint64) (*order.Order, error) {
	o := p.hand
	if o == nil || o.ID != id || p.handMarket != m {
		o = m.orders.get(id)
	}
	if o == nil || id == 0 {
		return nil, fmt.Errorf("order %d is not live", id)
	}
	if o.Account != account {
		return nil, fmt.Errorf("order %d is of account %d, not %d", id, o.Account, account)
	}
	return o, nil
}

func (p *Replayer) applyCancel(m *market, b *record.OrderCancel) error {
	o, err := p.live(m, b.OrderID, b.Account)
	if err != nil {
		return err
	}
	if o.Remaining == 0 {
		return fmt.Errorf("order %d is filled", o.ID)
	}
	for _, f := range []struct {
		what         string
		have, stated int64
	}{
		{"lots left", o.Remaining, b.Volume}, {"frozen margin", o.FrozenMargin, b.ReleasedMargin}, {"frozen fee", o.FrozenFee, b.ReleasedFee},
	} {
		if err := same(f.what, f.have, f.stated); err != nil {
			return fmt.Errorf("order %d: %w", o.ID, err)
		}
	}
	p.e.ledger.Release(m.index, o, o.Remaining)
	if o == p.hand {
		p.hand, p.handMarket = nil, nil
		m.book.Release(o)
		return nil
	}
	m.book.Remove(o)
	p.e.forget(m, o)
	return nil
}

func (p *Replayer) applyAmend(m *market, b *record.OrderAmend) error {
	if p.hand != nil {
		return fmt.Errorf("an amend comes within the transaction of order %d", p.hand.ID)
	}
	o, err := p.live(m, b.OrderID, b.Account)
	if err != nil {
		return err
	}
	if b.OldPrice != o.Price || b.OldVolume != o.Remaining {
		return fmt.Errorf("order %d is %d lots at %d by the records before it, but stated as %d at %d", o.ID, o.Remaining, o.Price, b.OldVolume, b.OldPrice)
	}
	d := *o
	d.Price, d.Volume, d.Remaining = b.Price, b.Volume, b.Volume
	d.FrozenMargin, d.FrozenFee = b.FrozenMargin, b.FrozenFee
	if err := p.checkEntry(m, &d, d.Remaining-o.Remaining); err != nil {
		return err
	}
	if kept := b.KeptPriority != 0; kept != keepsPlace(o, &d) {
		return fmt.Errorf("order %d: amend from %d lots at %d to %d at %d states kept priority %t", o.ID, o.Remaining, o.Price, d.Remaining, d.Price, kept)
	} else if kept {
		return p.shrink(m, o, &d)
	}
	p.e.lift(m, o)
	revalue(o, &d)
	p.take(m, o)
	return nil
}

func (p *Replayer) shrink(m *market, o, d *order.Order) error {
	p.e.ledger.Release(m.index, o, o.Remaining-d.Remaining)
	m.book.Amend(o, o.Price, d.Remaining)
	o.Volume = d.Remaining
	if err := same("frozen margin", o.FrozenMargin, d.FrozenMargin); err != nil {
		return fmt.Errorf("order %d: %w", o.ID, err)
	}
	return same("frozen fee", o.FrozenFee, d.FrozenFee)
}

func (p *Replayer) applyTrade(m *market, b *record.TradeExecuted) error {
	taker, maker, err := p.parties(m, b)
	if err != nil {
		return err
	}
	p.e.lastTradeID = b.TradeID
	p.e.ledger.Fill(m.index, maker, maker.Remaining, b.Price, b.Volume, b.MakerFee)
	p.e.ledger.Fill(m.index, taker, taker.Remaining, b.Price, b.Volume, b.TakerFee)
	p.e.marks[m.index] = b.Price
	taker.Remaining -= b.Volume
	if left := maker.Remaining - b.Volume; left > 0 {
		volume := maker.Volume
		m.book.Amend(maker, maker.Price, left)
		maker.Volume = volume
		return nil
	}
	m.book.Remove(maker)
	p.e.forget(m, maker)
	return nil
}

// parties returns the two orders of a trade, after checking that they can have
// traded so.
func (p *Replayer) parties(m *market, b *record.TradeExecuted) (taker, maker *order.Order, err error) {
	maker, err = p.live(m, b.MakerOrderID, b.MakerAccount)
	if err != nil {
		return nil, nil, fmt.Errorf("trade %d: maker: %w", b.TradeID, err)
	}
	taker = p.hand
	switch {
	case taker == nil || taker.ID != b.TakerOrderID || p.handMarket != m || taker.Account != b.TakerAccount:
		return nil, nil, fmt.Errorf("trade %d: taker order %d is not the one that came in", b.TradeID, b.TakerOrderID)
	case maker.AccountIndex == taker.AccountIndex || maker.Side == taker.Side:
		return nil, nil, fmt.Errorf("trade %d: orders %d and %d are of one account or on one side", b.TradeID, maker.ID, taker.ID)
	case b.TakerSide != taker.Side || b.TakerOffset != taker.Offset || b.MakerOffset != maker.Offset:
		return nil, nil, fmt.Errorf("trade %d: side or offsets are not those of the orders", b.TradeID)
	case b.TradeID <= p.e.lastTradeID:
		return nil, nil, fmt.Errorf("trade id %d comes after %d", b.TradeID, p.e.lastTradeID)
	case b.Volume <= 0 || b.Volume > taker.Remaining || b.Volume > maker.Remaining:
		return nil, nil, fmt.Errorf("trade %d: %d lots, but maker has %d and taker %d", b.TradeID, b.Volume, maker.Remaining, taker.Remaining)
	case b.Price != maker.Price || !reaches(taker, b.Price):
		return nil, nil, fmt.Errorf("trade %d: price %d does not follow from the orders", b.TradeID, b.Price)
	case b.MakerFee < 0 || b.TakerFee < 0:
		return nil, nil, fmt.Errorf("trade %d: negative fee", b.TradeID)
	}
	return taker, maker, nil
}
