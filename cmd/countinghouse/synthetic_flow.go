package main

import (
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/trial"
	"github.com/countinghouse/countinghouse/exchange/order"
	"github.com/countinghouse/countinghouse/exchange/risk"
	"github.com/countinghouse/countinghouse/orderflow/player"
	"github.com/countinghouse/countinghouse/orderflow/synthetic"
)

// syntheticFlow is a flow that a generator draws.
type syntheticFlow struct {
	config  synthetic.Config
	player  *player.Player
	deposit int64 // minor units each account starts with
}

// accountDeposit is what a demo's account starts with: 500 million.
const accountDeposit = 500_000_000

func newSyntheticFlow(set order.Set, seed, events uint64, rate float64, accounts int) (*syntheticFlow, error) {
	f := &syntheticFlow{
		config:  synthetic.Config{Seed: seed, Events: events, Rate: rate, Accounts: accounts},
		deposit: accountDeposit,
	}
	for range set.Decimals {
		f.deposit *= 10
	}
	var err error
	f.player, err = player.New(f.config, set.Instruments, func(i int) float64 { return 1 / float64(i+1) })
	return f, err
}

// Prepare opens the accounts.
func (f *syntheticFlow) Prepare(e *trial.Entry) error {
	for id := uint64(1); id <= uint64(f.config.Accounts); id++ {
		if r := e.OpenAccount(id); r.Reason != risk.OK {
			return fmt.Errorf("open account %d: %s", id, r.Reason)
		}
		if r := e.Deposit(id, f.deposit, id); r.Reason != risk.OK {
			return fmt.Errorf("deposit to account %d: %s", id, r.Reason)
		}
	}
	f.player.Listen(e.Fanout())
	return nil
}

// Steps returns the number of events.
func (f *syntheticFlow) Steps() uint64 { return f.config.Events }

// Due returns the next event's time.
func (f *syntheticFlow) Due() time.Duration { return f.player.Due() }

// Step makes the request that the next event asks for.
func (f *syntheticFlow) Step(e *trial.Entry) (bool, error) {
	_, more, err := f.player.Step(e)
	return more, err
}
