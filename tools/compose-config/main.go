// compose-config reads a Compose file with the loader of the Compose Specification itself, the one that Docker Compose
// is built on, and prints the resolved project as JSON. What the loader refuses or warns about goes to standard error;
// refused is exit code 1. With -schema it prints the specification's JSON schema instead.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/schema"
)

func main() {
	printSchema := flag.Bool("schema", false, "print the JSON schema of Compose files")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: compose-config FILE | compose-config -schema")
	}
	flag.Parse()
	if *printSchema {
		fmt.Println(schema.Schema)
		return
	}
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	resolved, err := resolve(flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(resolved))
}

// resolve checks a file against the schema and against itself, with variables taken from the environment alone: no
// .env file of the machine it runs on changes what is checked.
func resolve(file string) ([]byte, error) {
	options, err := cli.NewProjectOptions(
		[]string{file},
		cli.WithOsEnv,
		cli.WithInterpolation(true),
		cli.WithNormalization(true),
		cli.WithConsistency(true),
		cli.WithResolvedPaths(true),
	)
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalJSON()
}
