package replica

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// watchRoom has a leader refuse appends while fewer than a quorum of the voters have
// room: what it took would go to the reserves of the others. A voter learns that it
// is full, and the leader from its status, within two intervals.
func (r *Replica) watchRoom() {
	ticker := time.NewTicker(r.cfg.DiskCheckInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-r.ctx.Done():
			return
		}
		why := r.withoutRoom()
		if was := r.noRoom.Swap(&why); why != "" && (was == nil || *was == "") {
			r.cfg.Logger.Error("appends are refused until a quorum has room", "reason", why)
		} else if why == "" && was != nil && *was != "" {
			r.cfg.Logger.Info("a quorum has room again: appends are taken")
		}
	}
}

// withoutRoom says which other voters' disks are full if a quorum can not be had without
// them, or "". It is only a leader's to ask. A voter that does not answer has no
// room that could be counted on, but alone is no reason to refuse anything.
func (r *Replica) withoutRoom() string {
	if !r.IsLeader() {
		return ""
	}
	f := r.raft().GetConfiguration()
	if f.Error() != nil {
		return ""
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var full []string
	voters, room := 0, 0
	for _, s := range f.Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		wg.Go(func() {
			isFull, err := r.voterIsFull(s)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case isFull && string(s.ID) == r.cfg.ID: // appends are refused anyway
			case isFull:
				full = append(full, string(s.ID))
			case err == nil:
				room++
			}
		})
	}
	wg.Wait()
	if len(full) == 0 || room >= voters/2+1 {
		return ""
	}
	return fmt.Sprintf("the disks of %s are full, and %d of %d voters have room", strings.Join(full, ", "), room, voters)
}

func (r *Replica) voterIsFull(s raft.Server) (bool, error) {
	if string(s.ID) == r.cfg.ID {
		return r.disk.full.Load(), nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Transport.VoteTimeout)
	defer cancel()
	st, err := r.statusOf(ctx, string(s.Address))
	return err == nil && st.DiskFull, err
}
