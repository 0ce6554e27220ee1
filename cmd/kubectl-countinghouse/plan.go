package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	kube "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/controllers"
)

func newPlan(s *settings) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Say what applying a file would do to its shards, in steps, without doing it",
		Long: "Say what applying a file would do to its InstrumentShards, in steps, without doing it. The API server checks\n" +
			"the file and fills in defaults, as with kubectl apply --server-side --dry-run=server; a field that the file\n" +
			"leaves out and something else has set stays as it is. The steps come from the code that the operator runs.\n\n" +
			"Exits with 2 if the API server refuses the file.",
		Example: "  kubectl countinghouse plan -f futures.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := readFile(cmd.InOrStdin(), file)
			if err != nil {
				return output.Exit(output.ExitUsage, err)
			}
			sess, err := s.connect(s)
			if err != nil {
				return err
			}
			plans := []shardPlan{}
			for _, u := range objects {
				plan, err := sess.plan(cmd.Context(), u)
				if err != nil {
					return err
				}
				plans = append(plans, *plan)
			}
			return printPlans(s.printer(cmd), plans)
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "the file, - for standard input (required)")
	return cmd
}

// readFile returns the InstrumentShards of a file.
func readFile(in io.Reader, name string) ([]*unstructured.Unstructured, error) {
	switch name {
	case "":
		return nil, errors.New("-f: name the file that would be applied, or - for standard input")
	case "-":
	default:
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("-f: %w", err)
		}
		defer f.Close()
		in = f
	}
	var out []*unstructured.Unstructured
	for docs := yamlreader.NewYAMLReader(bufio.NewReader(in)); ; {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("-f %s: %w", name, err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &u.Object); err != nil {
			return nil, fmt.Errorf("-f %s: %w", name, err)
		}
		if u.GetKind() == "InstrumentShard" && strings.HasPrefix(u.GetAPIVersion(), v1.GroupVersion.Group+"/") {
			out = append(out, u)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("-f %s: no InstrumentShard of %s in it", name, v1.GroupVersion)
	}
	return out, nil
}

// shardPlan is the plan for one shard of the file.
type shardPlan struct {
	Shard string `json:"shard"`
	New   bool   `json:"new"`
	controllers.Plan
}

// fieldOwner is that of kubectl apply --server-side.
const fieldOwner = "kubectl"

func (s *session) plan(ctx context.Context, u *unstructured.Unstructured) (*shardPlan, error) {
	if u.GetNamespace() == "" {
		u.SetNamespace(s.namespace)
	}
	in := controllers.Situation{Live: new(v1.InstrumentShard), Wanted: new(v1.InstrumentShard)}
	key := kube.ObjectKeyFromObject(u)
	switch err := s.kube.Get(ctx, key, in.Live); {
	case apierrors.IsNotFound(err):
		in.Live = nil
	case err != nil:
		return nil, apiError(err)
	}
	if err := s.kube.Apply(ctx, kube.ApplyConfigurationFromUnstructured(u), kube.DryRunAll, kube.FieldOwner(fieldOwner), kube.ForceOwnership); err != nil {
		return nil, apiError(err)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, in.Wanted); err != nil {
		return nil, err
	}
	if in.Wanted.CreationTimestamp.IsZero() {
		in.Wanted.CreationTimestamp = metav1.NewTime(s.now()) // it would be the youngest
	}
	var others v1.InstrumentShardList
	if err := s.kube.List(ctx, &others, kube.InNamespace(key.Namespace)); err != nil {
		return nil, apiError(err)
	}
	in.Others = others.Items
	if in.Live != nil {
		v, err := s.look(ctx, in.Live)
		if err != nil {
			return nil, err
		}
		in.Leader, in.Pods, in.Claims = v.leader, v.pods, v.claims
	}
	plan, err := controllers.MakePlan(in)
	if err != nil {
		return nil, err
	}
	return &shardPlan{Shard: key.Name, New: in.Live == nil, Plan: *plan}, nil
}

func printPlans(p *output.Printer, plans []shardPlan) error {
	if p.Format == output.JSON {
		return p.JSON(map[string]any{"plans": plans})
	}
	for i, plan := range plans {
		if i > 0 {
			p.Line("")
		}
		switch {
		case plan.New:
			p.Line("%s would be created:", plan.Shard)
		case len(plan.Steps) == 0:
			p.Line("%s: nothing would be done.", plan.Shard)
		default:
			p.Line("%s: in this order,", plan.Shard)
		}
		for n, step := range plan.Steps {
			printWrapped(p, fmt.Sprintf("%d. %s", n+1, step.Kind), step.What)
		}
		for _, w := range plan.Warnings {
			printWrapped(p, "warning", w)
		}
	}
	return nil
}
