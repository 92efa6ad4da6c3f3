// Reads a dashboard from standard input as Grafana's schema has it: without a field that is unknown, missing or of another type.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins() // the types of panels and queries
	var read dashboard.Dashboard
	content, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = errors.Join(read.UnmarshalJSONStrict(content), read.Validate())
	}
	// A dashboard without a fault is an empty list of them, not nil.
	if err != nil && strings.TrimSpace(err.Error()) != "" {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
