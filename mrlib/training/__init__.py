"""The parts of a training run, which `mrlib.train.fit` puts together.

stages       what a stage of a paper does: train the retriever, or mine confusing windows
trainer      one epoch: order of the samples, steps, losses, gradients
run_state    what a run writes to its folder, and how it is resumed
resuming     the file from which it is resumed, and what is checked before
stopping     Ctrl-C and SIGTERM end a run at its next step
scoring      predict a whole dataset and score the predictions
cli          the options of `python -m mrlib.train`
"""
