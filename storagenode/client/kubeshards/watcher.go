package kubeshards

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// Config says which InstrumentShards are watched.
type Config struct {
	// REST reaches the API server. Required.
	REST *rest.Config
	// Namespace that the InstrumentShards are in. Required.
	Namespace string
	// Cluster is the spec.cluster of those that count. Required.
	Cluster string
	// Log is told of what is waited for and what changes. Default: none.
	Log *slog.Logger
}

const (
	resourceName = "instrumentshards"
	// pauseMin and pauseMax bound the pause before the API server is asked again
	// after an error.
	pauseMin = 200 * time.Millisecond
	pauseMax = 5 * time.Second
	// listTimeout bounds one request for the list.
	listTimeout = 10 * time.Second
)

// Watcher knows the InstrumentShards of a cluster. It is safe for concurrent use.
type Watcher struct {
	config Config
	api    rest.Interface
	store  *store
	pauses wait.Backoff
	gauges gauges
}

// New returns a Watcher that knows nothing before Run.
func New(c Config) (*Watcher, error) {
	switch {
	case c.REST == nil:
		return nil, errors.New("kubeshards: REST is missing")
	case c.Namespace == "":
		return nil, errors.New("kubeshards: Namespace is missing")
	case c.Cluster == "":
		return nil, errors.New("kubeshards: Cluster is missing")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	api, err := restClient(c.REST)
	if err != nil {
		return nil, fmt.Errorf("kubeshards: %w", err)
	}
	return &Watcher{
		config: c, api: api, store: newStore(c.Cluster),
		pauses: wait.Backoff{Duration: pauseMin, Cap: pauseMax, Factor: 2, Jitter: 0.2, Steps: 10},
	}, nil
}

// restClient returns a client that knows InstrumentShards and nothing else.
func restClient(c *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := v1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	own := rest.CopyConfig(c)
	own.APIPath, own.GroupVersion = "/apis", &v1.GroupVersion
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.WarningHandlerWithContext = rest.NoWarnings{}
	if own.UserAgent == "" {
		own.UserAgent = "countinghouse"
	}
	return rest.RESTClientFor(own)
}

// Run keeps the Watcher up to date until ctx ends. It is called once.
func (w *Watcher) Run(ctx context.Context) {
	logger := logr.FromSlogHandler(w.config.Log.Handler())
	pauses := w.pauses
	r := cache.NewReflectorWithOptions(w, &v1.InstrumentShard{}, w.store, cache.ReflectorOptions{
		Name: "kubeshards", Logger: &logger, Backoff: &pauses,
	})
	r.RunWithContext(klog.NewContext(ctx, logger))
}

// List implements cache.Lister.
func (w *Watcher) List(options metav1.ListOptions) (runtime.Object, error) {
	return w.ListWithContext(context.Background(), options)
}

// Watch implements cache.Watcher.
func (w *Watcher) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return w.WatchWithContext(context.Background(), options)
}

// ListWithContext implements cache.ListerWithContext.
func (w *Watcher) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list := &v1.InstrumentShardList{}
	err := w.request(options).Do(ctx).Into(list)
	return list, w.heard(ctx, err)
}

// WatchWithContext implements cache.WatcherWithContext.
func (w *Watcher) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	events, err := w.request(options).Watch(ctx)
	if err == nil && reflect.TypeOf(events) == brokenWatch {
		w.store.failed(errBroken)
		return events, nil
	}
	return events, w.heard(ctx, err)
}

// brokenWatch is what client-go returns for a watch whose connection broke before
// there was an answer, as if it had begun and ended.
var brokenWatch = reflect.TypeOf(watch.NewEmptyWatch())

var errBroken = errors.New("the connection broke before there was an answer")

// request makes one attempt: the reflector repeats it, and each error counts.
func (w *Watcher) request(options metav1.ListOptions) *rest.Request {
	return w.api.Get().MaxRetries(0).Namespace(w.config.Namespace).Resource(resourceName).VersionedParams(&options, metav1.ParameterCodec)
}

// heard notes whether the API server answered. An API server that can not begin a
// watch with a list says so, and is listed instead: that is no error.
func (w *Watcher) heard(ctx context.Context, err error) error {
	var answered interface{ Status() metav1.Status }
	switch {
	case err == nil:
		w.store.heard()
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
	case errors.As(err, &answered) && isOwnLimit(answered.Status().Code):
	default:
		w.store.failed(err)
	}
	return err
}

// isOwnLimit reports whether a status says that the request is one that the API
// server does not know, or that its resource version is too old.
func isOwnLimit(code int32) bool {
	switch code {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusGone:
		return true
	}
	return false
}
