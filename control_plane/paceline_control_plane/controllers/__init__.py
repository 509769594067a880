"""What the leader does: compares what is wanted with what is and writes assignments, until both agree (level based).

memory keeps since when things are as they are, capacity says what is free, changes decides (pure), leader carries it out.
"""
