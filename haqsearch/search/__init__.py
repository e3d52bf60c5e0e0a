"""The search: one loop over an agent, a pool of evaluators and a study on disk.

``loop`` asks, evaluates and tells; ``pool`` and ``ray_pool`` evaluate, here or on many workers; ``storage`` keeps the
study; ``records`` reads it back. Importing this package loads nothing heavy: import what you need from the module
that has it.
"""
