%% SPDX-License-Identifier: Apache-2.0
%% @doc What runs below `net_sup' while distribution does, before and after applications.
%%
%% `net_sup' allows no restarts: one crash of a child of its own stops the node. So it gets this one
%% supervisor, which allows some.
-module(chatter_dist_sup).
-behaviour(supervisor).

-export([child_specs/0, start_link/0, init/1]).

%% @doc The one child of `net_sup'; with `-no_epmd' there is nobody else to start the registry.
-spec child_specs() -> [supervisor:child_spec()].
child_specs() ->
    [#{id => ?MODULE, start => {?MODULE, start_link, []}, restart => permanent,
       shutdown => infinity, type => supervisor, modules => [?MODULE]}].

%% @doc Starts the supervisor.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @private
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = chatter_monitors:new(),
    ok = chatter_settle:new(),
    ok = chatter_broadcast:new(),
    ok = chatter_group_srv:new_table(),
    Node = #{id => chatter_node, start => {chatter_node, start_link, []}, restart => permanent,
             shutdown => 5000, type => worker, modules => [chatter_node]},
    Pulse = #{id => chatter_pulse, start => {chatter_pulse, start_link, []}, restart => permanent,
              shutdown => brutal_kill, type => worker, modules => [chatter_pulse]},
    Broadcast = #{id => chatter_broadcast, start => {chatter_broadcast, start_link, []},
                  restart => permanent, shutdown => brutal_kill, type => worker,
                  modules => [chatter_broadcast]},
    Groups = #{id => chatter_group_srv,
               start => {chatter_group_srv, start_link, [chatter_group_bus]},
               restart => permanent, shutdown => 5000, type => worker,
               modules => [chatter_group_srv]},
    Messages = #{id => chatter_messages, start => {chatter_messages, start_link, []},
                 restart => permanent, shutdown => 1000, type => worker,
                 modules => [chatter_messages]},
    Class = #{id => chatter_class, start => {chatter_class, start_link, []},
              restart => permanent, shutdown => brutal_kill, type => worker,
              modules => [chatter_class]},
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [Node, Pulse, Broadcast, Groups, Messages, Class | registry()]}}.

registry() ->
    case init:get_argument(no_epmd) of
        error -> [];
        {ok, _} -> [#{id => chatter_epmd, start => {chatter_epmd, start_link, []},
                      restart => permanent, shutdown => infinity, type => supervisor,
                      modules => [chatter_epmd]}]
    end.
