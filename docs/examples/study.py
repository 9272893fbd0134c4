"""A study as data frames and figures, to go on with in a notebook.

It needs the runs of

    python -m bnstudy.train norm=batchnorm,none seed=0,1 -m
"""

# %%
import bnstudy

study = bnstudy.load("multirun/mnist5k_cnn")
print(study.counts())
print(study.runs[["cell", "treatment", "seed", "status", "test_accuracy"]])

# %% [markdown]
# One row a number: of each run's last epoch, or of every epoch.

# %%
sparsity = study.metrics("unit_sparsity", split="train")
print(sparsity.pivot_table(index="layer", columns="treatment", values="value"))

accuracy = study.metrics("accuracy", split="test", every_epoch=True)
print(accuracy.groupby(["treatment", "epoch"])["value"].agg(["mean", "std", "count"]))

# %% [markdown]
# Runs that differ in nothing but the norm are pairs: n is their number; `smallest_p`, what so few
# can show at best; p_adjusted is for all metrics and layers.

# %%
effects = study.effects(baseline="none")
columns = ["split", "place", "n", "difference", "low", "high", "p", "p_adjusted", "smallest_p"]
print(effects.loc[effects["metric"] == "unit_sparsity", columns])

# %% [markdown]
# Figures are Matplotlib's; whatever else a question needs can be asked in SQL.

# %%
figure = study.plot.layers("unit_sparsity")
figure.savefig("unit_sparsity.pdf")

print(study.query("select metric, count(*) from final where not isfinite(value) group by all"))
