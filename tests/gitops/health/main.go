// Command health judges Kubernetes objects with a Lua script, as Argo CD does, and with CEL expressions, as Flux does.
//
// Standard input is {"lua": script, "inProgress": cel, "failed": cel, "current": cel, "objects": [...]}.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/google/cel-go/cel"
	lua "github.com/yuin/gopher-lua"
)

type question struct {
	Lua        string           `json:"lua"`
	InProgress string           `json:"inProgress"`
	Failed     string           `json:"failed"`
	Current    string           `json:"current"`
	Objects    []map[string]any `json:"objects"`
}

type verdict struct {
	Lua     string `json:"lua"`
	Message string `json:"message"`
	Cel     string `json:"cel"`
}

func main() {
	if err := judge(); err != nil {
		fmt.Fprintln(os.Stderr, "health:", err)
		os.Exit(1)
	}
}

func judge() error {
	var asked question
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	verdicts := make([]verdict, 0, len(asked.Objects))
	for _, object := range asked.Objects {
		status, message, err := byLua(asked.Lua, object)
		if err != nil {
			return err
		}
		word, err := byCel(asked, object)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, verdict{status, message, word})
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

func byLua(script string, object map[string]any) (string, string, error) {
	state := lua.NewState()
	defer state.Close()
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return "", "", err
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", "", fmt.Errorf("the script returned %s", state.Get(-1).Type())
	}
	return answer.RawGetString("status").String(), answer.RawGetString("message").String(), nil
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(from)
	case float64:
		return lua.LNumber(from)
	case bool:
		return lua.LBool(from)
	}
	return lua.LNil
}

// byCel asks in Flux's order. An expression that cannot be evaluated, because a field is not there yet, means waiting.
func byCel(asked question, object map[string]any) (string, error) {
	steps := []struct{ expression, word string }{
		{asked.InProgress, "InProgress"}, {asked.Failed, "Failed"}, {asked.Current, "Current"},
	}
	environment, err := cel.NewEnv(
		cel.Variable("metadata", cel.DynType), cel.Variable("spec", cel.DynType), cel.Variable("status", cel.DynType),
	)
	if err != nil {
		return "", err
	}
	for _, step := range steps {
		compiled, issues := environment.Compile(step.expression)
		if issues.Err() != nil {
			return "", issues.Err()
		}
		program, err := environment.Program(compiled)
		if err != nil {
			return "", err
		}
		answer, _, err := program.Eval(object)
		if err != nil {
			return "InProgress", nil
		}
		if answer.Value() == true {
			return step.word, nil
		}
	}
	return "InProgress", nil
}
