package main

// Groups of rows, in the order of the table.
const (
	groupBuiltin = "pod, built-in network (peer: plugins)"
	groupPlugins = "pod, stock plugins for both"
	groupNoPool  = "pod, built-in network without netns pool"
	groupExec    = "exec"
	groupMany    = "pods, 10 at once"
	groupMemory  = "memory"
	groupAsk     = "list and stats"
	groupLog     = "log"
	groupStream  = "attach and port-forward"
	groupNet     = "network between two pods"
	groupScale   = "scale (ours)"
)

// goals are by "GROUP: NAME".
var goals = map[string]goal{
	groupBuiltin + ": pod up p50":         {ratio: 20, floor: 2.5},
	groupPlugins + ": pod up p50":         {ratio: 4},
	groupBuiltin + ": pod down p50":       {ratio: 30},
	groupBuiltin + ": CPU a pod cycle":    {ratio: 20},
	groupExec + ": ExecSync p50":          {ratio: 20},
	groupExec + ": ExecSync, 8 at once":   {ratio: 20},
	groupExec + ": CPU an exec":           {ratio: 20},
	groupMany + ": up":                    {ratio: 16},
	groupMemory + ": a pod, no daemon":    {ratio: 40},
	groupMemory + ": all at 50 pods":      {most: 70},
	groupAsk + ": ListContainerStats":     {ratio: 20},
	groupAsk + ": ContainerStatus":        {ratio: 2},
	groupLog + ": 100-byte lines":         {ratio: 4},
	groupLog + ": CPU a MB":               {ratio: 4},
	groupScale + ": start, last to first": {most: 1.5},
	groupScale + ": restart":              {most: 2000},
}
