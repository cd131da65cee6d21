"""What crosses the borders between modalities, encoders, objectives, evaluators and the engine. Read first.

Modalities make views, encoders make features, objectives make losses, one trainer takes the step. Everything that two
rooms exchange is declared here, one abstract class per kind; the engine imports nothing else of ours.
"""
