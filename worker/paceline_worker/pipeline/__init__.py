"""How the stages of one instance work together: the plan of each step, the way of a frame, the head's loop.

The head is the runner of the last stage. It plans, samples and answers; the stages before it only compute what plans say.
"""
