-- The mean over the training examples of what the number of an entity's examples makes of their weight.
SELECT SUM(examples * POW(examples, {{ -balance | literal }})) / SUM(examples) AS mean
FROM training_entities
