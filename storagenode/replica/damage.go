package replica

import "time"

// damageCheckInterval is how often a node looks whether damage was found in its
// data, and whether it leads in spite of that.
const damageCheckInterval = time.Second

// damage returns the damage that was found in the live store or in a snapshot, or
// nil. A snapshot from a leader that is whole takes the place of both.
func (r *Replica) damage() error {
	if live := r.fsm.live.Load(); live != nil {
		if err := live.shard.Damage(); err != nil {
			return err
		}
	}
	return r.snapshots.damage()
}

// watchDamage makes a node with damaged data hand leadership over: readers of the
// leader would be refused what it has lost, and followers that lag could not get a
// snapshot from it. The node stays a voter, for its log may be whole.
func (r *Replica) watchDamage() {
	ticker := time.NewTicker(damageCheckInterval)
	defer ticker.Stop()
	said, stuck := false, false
	for {
		select {
		case <-ticker.C:
		case <-r.ctx.Done():
			return
		}
		err := r.damage()
		if err == nil {
			said, stuck = false, false
			continue
		}
		if !said {
			said = true
			r.cfg.Logger.Error("data is damaged: replace the member", "error", err)
		}
		if !r.IsLeader() {
			stuck = false
		} else if !r.handOver() && !stuck && r.IsLeader() {
			stuck = true
			r.cfg.Logger.Warn("data is damaged, and no other voter can lead")
		}
	}
}
