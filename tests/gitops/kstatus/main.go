// Command kstatus reads Kubernetes objects as a JSON list and says, for each, what Flux's own library makes of its state.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type verdict struct {
	Name    string `json:"name"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	if err := judge(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}

func judge() error {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return fmt.Errorf("standard input must be a JSON list of objects: %w", err)
	}
	verdicts := make([]verdict, 0, len(objects))
	for _, object := range objects {
		item := &unstructured.Unstructured{}
		if err := item.UnmarshalJSON(object); err != nil {
			return err
		}
		result, err := status.Compute(item)
		if err != nil {
			return fmt.Errorf("%s: %w", item.GetName(), err)
		}
		verdicts = append(verdicts, verdict{item.GetName(), result.Status.String(), result.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}
