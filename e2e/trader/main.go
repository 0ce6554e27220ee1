// Command trader trades on an exchange at a steady rate, keeps account of every
// answer, and holds what the shards store against it. It runs in a pod beside the
// exchange and is steered over HTTP:
//
//	GET  /state          what it has done since it began
//	POST /step?name=N    begin a step: figures are kept for each
//	GET  /steps          the figures of all steps
//	POST /shards         follow these shards; the body is a shard map
//	POST /pause /resume  stop and go on trading
//	POST /check          compare the shards of the map in the body with the answers
//
// It knows the exchange and the storage nodes by their protocols only.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

type config struct {
	exchange    string
	metrics     string
	listen      string
	instruments []string
	accounts    uint64
	rate        float64
	timeout     time.Duration
	tls         string
	cluster     string
}

func main() {
	var c config
	pflag.StringVar(&c.exchange, "exchange", "", "host:port of the exchange")
	pflag.StringVar(&c.metrics, "exchange-metrics", "", "URL of the exchange's metrics")
	pflag.StringVar(&c.listen, "listen", ":8080", "host:port to be steered on")
	pflag.StringSliceVar(&c.instruments, "instruments", []string{"IF2501", "IC2501", "IH2501"}, "what is traded")
	pflag.Uint64Var(&c.accounts, "accounts", 4, "accounts that trade, an even number")
	pflag.Float64Var(&c.rate, "rate", 500, "requests a second")
	pflag.DurationVar(&c.timeout, "timeout", 2*time.Second, "after which an answer counts as lost")
	pflag.StringVar(&c.tls, "tls", "", "directory with the certificates trader, operator and reader, each a --tls-dir; none for no TLS")
	pflag.StringVar(&c.cluster, "cluster", "countinghouse", "the cluster of the certificates")
	pflag.Parse()
	if c.exchange == "" || c.accounts < 2 || c.accounts%2 != 0 || c.rate <= 0 {
		fmt.Fprintln(os.Stderr, "trader: --exchange, an even number of --accounts and a --rate above 0 are needed")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, c); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "trader:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t, err := newTrader(ctx, c)
	if err != nil {
		return err
	}
	defer t.close()
	s := &http.Server{Addr: c.listen, Handler: routes(ctx, t), ReadHeaderTimeout: 5 * time.Second}
	go func() { cancel(s.ListenAndServe()) }()
	log.Printf("trading with %s, steered on %s", c.exchange, c.listen)
	if c.metrics != "" {
		go t.watchLag(ctx)
	}
	t.trade(ctx)
	return errors.Join(context.Cause(ctx), s.Close())
}

func routes(ctx context.Context, t *trader) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := do(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			writeJSON(w, v)
		})
	}
	answer("GET /state", func(*http.Request) (any, error) { return t.state(), nil })
	answer("GET /steps", func(*http.Request) (any, error) { return t.steps.all(), nil })
	answer("POST /step", func(r *http.Request) (any, error) {
		name := r.URL.Query().Get("name")
		if name == "" {
			return nil, errors.New("name is empty")
		}
		t.steps.begin(name)
		return name, nil
	})
	answer("POST /pause", func(*http.Request) (any, error) { t.pause(true); return t.state(), nil })
	answer("POST /resume", func(*http.Request) (any, error) { t.pause(false); return t.state(), nil })
	answer("POST /shards", func(r *http.Request) (any, error) {
		m, err := readMap(r.Body)
		if err != nil {
			return nil, err
		}
		return m, t.follow(ctx, m)
	})
	answer("POST /check", func(r *http.Request) (any, error) {
		m, err := readMap(r.Body)
		if err != nil {
			return nil, err
		}
		return t.check(r.Context(), m)
	})
	return mux
}

func readBody(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, 1<<20)) }

// words makes a sentence of problems, the first few of them.
func words(problems []string) string {
	const shown = 5
	if len(problems) > shown {
		problems = append(problems[:shown:shown], fmt.Sprintf("and %d more", len(problems)-shown))
	}
	return strings.Join(problems, "; ")
}
