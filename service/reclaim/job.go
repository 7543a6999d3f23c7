package reclaim

import (
	"context"
	"time"

	"holdfast/service/jobs"
)

// JobName is the name of the job.
const JobName = "reclaim"

// Job returns the background job that runs this. It does not rest while a disk is full: it is what makes room there.
// Its spending, cfg's if that has one, is kept with what is remembered of the job.
func Job(cfg Config, every time.Duration) jobs.Job {
	cfg = cfg.withDefaults()
	return jobs.Job{Name: JobName, Every: every, Run: func(ctx context.Context, t *jobs.Turn) (jobs.Result, error) {
		cfg := cfg
		t.Load(cfg.Spending)
		cfg.Enough, cfg.Did = t.Enough, t.Did
		r, err := Run(ctx, cfg)
		t.Save(cfg.Spending)
		return jobs.Result{More: r.More, Text: r.String(), Report: r}, err
	}}
}
